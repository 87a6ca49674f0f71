"""Bases that are worth starting from, and what they take of memory.

Figures are computed from each base's configuration, on the meta device: no weights are read. A base
that is at hand offline has its own configuration read, the others theirs from `RECOMMENDED`.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from one4all_lc.base.embedded import EMBEDDED
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    import torch

RANK = 16
TRAINED_ROWS, TRAINED_TOKENS = 8, 128
"""The adapter and the batch that memory for training is computed with."""

_BLOCK, _NESTED = 64, 256
"""bitsandbytes' NF4: weights that share a scale of one byte, and scales that share one of four."""


def _bert(vocabulary: int, **others: Any) -> dict[str, Any]:
    """Return the configuration of a BERT of the base size."""
    return {"model_type": "bert", "vocab_size": vocabulary, **others}


def _qwen3(hidden: int, wide: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }


def _smollm2(hidden: int, wide: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": True,
    }


@dataclass(frozen=True)
class Recommended:
    """A base that is worth starting from.

    Attributes:
        name: What people call it.
        id: Its hub id; None if none is public.
        languages: ISO 639-1 codes of what it was made for, or `100` for so many.
        encodes: Whether it is an encoder, for experts that decide.
        config: What its configuration says, as far as memory depends on it; empty if unknown.
        remark: What one should know of it.
    """

    name: str
    id: str | None
    languages: tuple[str, ...]
    encodes: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


_MANY = ("100 languages",)

_E5 = _bert(
    250037,
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=12,
    pad_token_id=1,
)

RECOMMENDED = (
    Recommended(
        "multilingual-e5-small",
        "intfloat/multilingual-e5-small",
        _MANY,
        True,
        _E5,
        "from the package index; the router's embedder",
    ),
    Recommended(
        "ParsBERT",
        "HooshvareLab/bert-base-parsbert-uncased",
        ("fa",),
        True,
        _bert(100000),
    ),
    Recommended(
        "ParsBERT 3",
        "HooshvareLab/bert-fa-zwnj-base",
        ("fa",),
        True,
        _bert(42000),
        "keeps half-spaces",
    ),
    Recommended("mBERT", "google-bert/bert-base-multilingual-cased", _MANY, True, _bert(119547)),
    Recommended(
        "CamemBERT",
        "almanach/camembert-base",
        ("fr",),
        True,
        {
            "model_type": "camembert",
            "vocab_size": 32005,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    ),
    Recommended(
        "SaadiBERT",
        None,
        ("fa",),
        True,
        remark="Persian medicine; no public id is known: give the path of its folder as the base",
    ),
    Recommended(
        "SmolLM2 135M",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("en",),
        False,
        _smollm2(576, 1536, 30, 9, 3),
        "from the package index; the default",
    ),
    Recommended(
        "SmolLM2 360M",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        ("en",),
        False,
        _smollm2(960, 2560, 32, 15, 5),
    ),
    Recommended(
        "SmolLM2 1.7B",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        ("en",),
        False,
        _smollm2(2048, 8192, 24, 32, 32),
    ),
    Recommended("Qwen3 0.6B", "Qwen/Qwen3-0.6B", _MANY, False, _qwen3(1024, 3072, 28, 16)),
    Recommended("Qwen3 1.7B", "Qwen/Qwen3-1.7B", _MANY, False, _qwen3(2048, 6144, 28, 16)),
    Recommended("Qwen3 4B", "Qwen/Qwen3-4B", _MANY, False, _qwen3(2560, 9728, 36, 32)),
)


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


@dataclass(frozen=True)
class BaseRow:
    """One row of the table.

    Attributes:
        name: What people call it.
        id: Its hub id, or the path that was given.
        languages: What it was made for.
        kind: `encoder` or `decoder`.
        memory: None if its configuration is unknown.
        at_hand: Whether it loads without a network.
        remark: What one should know of it.
    """

    name: str
    id: str | None
    languages: tuple[str, ...]
    kind: str
    memory: Memory | None
    at_hand: bool
    remark: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def rows(saadibert: str | None = None) -> list[BaseRow]:
    """Return the table.

    Args:
        saadibert: The folder of SaadiBERT, for whoever has it.

    Raises:
        InvalidInput: There is no such folder, or no model's configuration in it.
    """
    found = []
    for item in RECOMMENDED:
        path = saadibert if item.id is None else None
        config = _config(item, path)
        found.append(
            BaseRow(
                item.name,
                path or item.id,
                item.languages,
                "encoder" if item.encodes else "decoder",
                memory_of(config, encodes=item.encodes) if config is not None else None,
                path is not None or (item.id is not None and at_hand(item.id)),
                item.remark,
            )
        )
    return found


def at_hand(model_id: str) -> bool:
    """Whether a base loads without a network: unpacked, or in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    entry = EMBEDDED.get(model_id)
    if entry is not None and entry.target.is_dir():
        return True
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(model_id, name), str) for name in weights)


def _config(item: Recommended, path: str | None) -> Any:
    from transformers import AutoConfig

    if path is not None:
        if not os.path.isfile(os.path.join(os.path.expanduser(path), "config.json")):
            msg = f"There is no model at {path!r}: give the folder that has its config.json."
            raise InvalidInput(msg)
        return AutoConfig.from_pretrained(os.path.expanduser(path))
    if not item.config:
        return None
    given = dict(item.config)
    return AutoConfig.for_model(given.pop("model_type"), **given)


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
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    fewer = copy.deepcopy(config)
    name = fewer.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    setattr(fewer, name, layers)
    if getattr(fewer, "layer_types", None):
        fewer.layer_types = fewer.layer_types[:layers]
    model = _on_meta(fewer, encodes=encodes)
    with torch.device("meta"):
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
