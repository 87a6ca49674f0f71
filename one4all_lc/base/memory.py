"""What a base takes of memory, computed from its configuration on the meta device."""

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RANK = 16
TRAINED_ROWS, TRAINED_TOKENS = 8, 128
"""The adapter and the batch that memory for training is computed with."""

_BLOCK, _NESTED = 64, 256
"""bitsandbytes' NF4: weights that share a scale of one byte, and scales that share one of four."""


@dataclass(frozen=True)
class Memory:
    """What a base takes.

    Attributes:
        parameters: Its weights, counted.
        none: Bytes of the weights in bfloat16.
        int8: Bytes with the linear layers in bitsandbytes' int8.
        nf4: Bytes with the linear layers in bitsandbytes' NF4.
        training: Bytes that training an adapter of rank `RANK` on the NF4 base keeps: base,
            adapter, its gradients and Adam's two moments, and what a batch of `TRAINED_ROWS` rows
            of `TRAINED_TOKENS` tokens leaves for the way back, attention fused.
    """

    parameters: int
    none: int
    int8: int
    nf4: int
    training: int


def memory_of(config: Any, *, encodes: bool) -> Memory:
    """Compute what a base of a configuration takes.

    Args:
        config: transformers' configuration.
        encodes: Whether it is an encoder.
    """
    import torch

    model = _on_meta(config, encodes=encodes)
    head = model.get_output_embeddings()
    linears = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(layer.weight.numel() for layer in linears)
    outputs = sum(layer.out_features for layer in linears)
    rest = 2 * (total - weights)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    nf4 = sum(nf4_bytes(layer.weight.numel()) for layer in linears)
    adapter = RANK * sum(layer.in_features + layer.out_features for layer in linears)
    return Memory(
        total,
        2 * total + buffers,
        rest + weights + 4 * outputs + buffers,
        rest + nf4 + buffers,
        rest + nf4 + buffers + 4 * 4 * adapter + _saved(config, encodes=encodes),
    )


def nf4_bytes(weights: int) -> int:
    """Return the bytes that bitsandbytes' NF4 with double quantization takes."""
    blocks = -(-weights // _BLOCK)
    return weights // 2 + blocks + 4 * -(-blocks // _NESTED)


def _on_meta(config: Any, *, encodes: bool) -> Any:
    """Return a model without weights."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from one4all_lc.base.loading import without_pooler
    from one4all_lc.base.quiet import quiet

    kind = AutoModel if encodes else AutoModelForCausalLM
    with quiet(), torch.device("meta"):
        model = without_pooler(kind.from_config(config, dtype=torch.bfloat16))
    model.config._attn_implementation = _attention()
    return model


@functools.cache
def _attention() -> str:
    """Register attention that keeps what fused kernels keep; on meta torch would not use one."""
    import torch
    from transformers import AttentionInterface

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: torch.Tensor) -> torch.Tensor:
            query = given[0]
            out = torch.empty_like(query)
            sums = query.new_empty(query.shape[:3], dtype=torch.float32)
            ctx.save_for_backward(*given, out, sums)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> None:
            raise NotImplementedError

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        attended: torch.Tensor = Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
        return attended.transpose(1, 2).contiguous(), None

    AttentionInterface.register("one4all-fused-on-meta", attend)
    return "one4all-fused-on-meta"


def _saved(config: Any, *, encodes: bool) -> int:
    """Return the bytes that a training step's forward leaves for the way back.

    Layers are alike: two models of one and two layers say what all take.
    """
    one, two = (_saved_by(config, layers, encodes=encodes) for layers in (1, 2))
    return one + (int(config.num_hidden_layers) - 1) * (two - one)


def _saved_by(config: Any, layers: int, *, encodes: bool) -> int:

    import torch
    from peft import LoraConfig, get_peft_model

    fewer = copy.deepcopy(config)
    name = fewer.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    setattr(fewer, name, layers)
    if getattr(fewer, "layer_types", None):
        fewer.layer_types = fewer.layer_types[:layers]
    model = _on_meta(fewer, encodes=encodes)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of transformers' names
        tuned = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
        ids = torch.zeros(TRAINED_ROWS, TRAINED_TOKENS, dtype=torch.long)
    return saved_bytes(tuned.train(), ids, encodes=encodes)


def saved_bytes(model: Any, ids: "torch.Tensor", *, encodes: bool) -> int:
    """Return the bytes that a forward keeps for the way back, the model's own weights apart.

    Args:
        model: PEFT's, in training.
        ids: Token ids, shape (rows, tokens).
        encodes: An encoder's hidden states are what is differentiated, else the loss of all tokens.
    """
    import torch
    from torch.nn.functional import cross_entropy

    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids)
        if encodes:
            loss = output.last_hidden_state.float().mean()
        else:
            logits = output.logits.flatten(0, 1).float()
            loss = cross_entropy(logits, ids.flatten())
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total
