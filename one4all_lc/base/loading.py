"""The shared base: found, quantized once per process, and known by its fingerprint."""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from one4all_lc.base.embedded import resolve
from one4all_lc.base.quiet import first_line, quiet
from one4all_lc.base.threads import passing_threads
from one4all_lc.card import BaseFacts, BaseFingerprint
from one4all_lc.errors import InvalidInput, ModelNotFound

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_ENCODER = "intfloat/multilingual-e5-small"
"""The base of encoder experts whose cards name no other."""

Quantization = Literal["auto", "nf4", "int8", "none"]

# Encoded to tell tokenizers with one vocabulary but other rules apart.
_PROBE = (
    "How's the camera? قیمت گوشی چند است؟ Où est-ce?\n\tSELECT COUNT(*) FROM t1 WHERE x >= 3.14;"
)


@dataclass(frozen=True, eq=False)
class SharedBase:
    """The pretrained model that every expert is a LoRA adapter on.

    Attributes:
        facts: What adapters are checked against.
        model: The decoder or encoder, in eval mode, its gradients off.
        tokenizer: Its tokenizer, with a decoder's chat template.
        quantization: `nf4`, `int8` or `none`: what `auto` was resolved to.

    Example:
        base = SharedBase.load("HuggingFaceTB/SmolLM2-135M-Instruct", quantization="nf4")
    """

    facts: BaseFacts
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    quantization: str

    _loaded: ClassVar[dict[tuple[str, ...], "SharedBase"]] = {}
    _loading: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def load(
        cls,
        base: str = DEFAULT_BASE,
        *,
        quantization: Quantization = "auto",
        device: str = "auto",
        dtype: "torch.dtype | None" = None,
        shared: bool = True,
    ) -> Self:
        """Load a base, or return it if this process has loaded it already.

        Args:
            base: A path or hub id of any decoder that AutoModelForCausalLM loads, or any encoder
                that AutoModel loads (BERT, RoBERTa, DistilBERT, ModernBERT and the like).
            quantization: bitsandbytes NF4 (double quantization) or int8, or none. `auto` is NF4
                for decoders where it runs, and none for encoders: most of a small encoder is its
                word embeddings, which are never quantized, and whole texts are computed with
                weights that are not.
            device: `auto` is the first CUDA device, or else the CPU.
            dtype: Type of what is not quantized; by default bfloat16 where the device computes
                it natively, else float32.
            shared: False loads a copy that nobody else sees: training changes the model, and an
                NF4 layer that has answered on a CPU is packed in a form without gradients.

        Raises:
            ModelNotFound: No place holds the base, or it is neither decoder nor encoder.
            InvalidInput: The quantization is unknown or does not run on the device.
        """
        device = _device(device)
        chosen = _quantization(quantization, device)
        dtype = dtype or _dtype(device)
        folder = resolve(base)
        if quantization == "auto" and encodes(folder):
            chosen = "none"
        key = (folder, chosen, device, str(dtype))
        with cls._loading, passing_threads():
            if shared and key in cls._loaded:
                return cls._loaded[key]  # type: ignore[return-value]
            model = _load_model(folder, chosen, device, dtype)
            tokenizer = _load_tokenizer(folder)
            loaded = cls(facts_of(base, model, tokenizer), model, tokenizer, chosen)
            if shared:
                cls._loaded[key] = loaded
            return loaded

    @property
    def device(self) -> "torch.device":
        """Where the base computes."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> "torch.dtype":
        """The type that hidden states have."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def memory_bytes(self) -> int:
        """Bytes of parameters and buffers as quantized, or as an engine has laid them out."""
        laid_out = getattr(self.model, "_one4all_linears", None)
        return int(self.model.get_memory_footprint()) + (laid_out.memory_bytes if laid_out else 0)

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder, for experts that decide, and not a decoder that writes."""
        return self.facts.encodes

    @property
    def context_length(self) -> int:
        """Tokens that the base reads, of a decoder those of the answer included."""
        config = self.model.config.get_text_config()
        length = int(getattr(config, "max_position_embeddings", 2048))
        return length - self.first_position

    @property
    def first_position(self) -> int:
        """Position of a text's first token: RoBERTa's kin count from behind the padding token's."""
        embeddings = getattr(self.model, "embeddings", None)
        padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        return 0 if padding is None else int(padding) + 1

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return frozenset({*ends, self.tokenizer.eos_token_id} - {None})


def describe(base: str = DEFAULT_BASE) -> BaseFacts:
    """Return the facts of a base without loading its weights.

    Raises:
        ModelNotFound: No place holds the base, or it is neither decoder nor encoder.
    """
    import torch

    folder = resolve(base)
    with _usable_or_error(folder), torch.device("meta"):
        config, kind = _config_and_class(folder)
        model = without_pooler(kind.from_config(config))
    return facts_of(base, model, _load_tokenizer(folder))


def encodes(base: str) -> bool:
    """Whether a base is an encoder, known from its configuration alone.

    Raises:
        ModelNotFound: No place holds the base, or it is neither decoder nor encoder.
    """
    folder = resolve(base)
    with _usable_or_error(folder):
        return _is_encoder(_config_and_class(folder)[0])


def _config_and_class(folder: str) -> tuple[Any, Any]:
    """Return a base's configuration and the class that loads it."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if config.is_encoder_decoder:
        msg = "it is an encoder and a decoder in one"
        raise ValueError(msg)
    return config, AutoModel if _is_encoder(config) else AutoModelForCausalLM


def _is_encoder(config: Any) -> bool:
    """Whether a model of this configuration reads in both directions."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    names = getattr(config, "architectures", None) or ()
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    return masked and not writes and not getattr(config, "is_decoder", False)


def without_pooler(model: "PreTrainedModel") -> "PreTrainedModel":
    """Take out what makes one vector of a text: heads do that, and many checkpoints lack it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def load_tokenizer(base: str = DEFAULT_BASE) -> "PreTrainedTokenizerBase":
    """Load a base's tokenizer alone.

    Raises:
        ModelNotFound: No place holds the base.
    """
    return _load_tokenizer(resolve(base))


def facts_of(
    base: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> BaseFacts:
    """Fingerprint a base and list its linear layers, whatever their quantization."""
    import torch

    head = model.get_output_embeddings()
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    embeddings = list(model.get_input_embeddings().weight.shape)
    vocabulary = sorted(tokenizer.get_vocab().items())
    probe = tokenizer.encode(_PROBE, add_special_tokens=False)
    fingerprint = BaseFingerprint(
        architecture=type(model).__name__,
        shapes=_sha256([embeddings, sorted(linears.items())]),
        tokenizer=_sha256([vocabulary, probe]),
        chat_template=_sha256(tokenizer.chat_template) if tokenizer.chat_template else "",
    )
    width = int(getattr(model.config.get_text_config(), "hidden_size", embeddings[1]))
    return BaseFacts(base, fingerprint, linears, width, _is_encoder(model.config))


def _device(device: str) -> str:
    import torch

    count = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if count else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        msg = f"There is no device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'."
        raise InvalidInput(msg) from None
    if found.type != "cuda":
        return str(found)
    index = found.index or 0  # one spelling for one device: bases are shared by it
    if index >= count:
        msg = f"There is no device {device!r}: this machine has {count} CUDA devices."
        raise InvalidInput(msg)
    return f"cuda:{index}"


def _quantization(quantization: str, device: str) -> str:
    if quantization not in ("auto", "nf4", "int8", "none"):
        msg = f"There is no quantization {quantization!r}: use 'auto', 'nf4', 'int8' or 'none'."
        raise InvalidInput(msg)
    runs = device.startswith(("cuda", "cpu"))
    if quantization in ("nf4", "int8") and not runs:
        msg = (
            f"bitsandbytes does not quantize on {device!r}: use quantization='none' there, or the "
            "device 'cpu' or 'cuda'."
        )
        raise InvalidInput(msg)
    if quantization == "auto":
        return "nf4" if runs else "none"
    return quantization


def _dtype(device: str) -> "torch.dtype":
    import torch

    native = device.startswith("cuda") or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _load_model(
    folder: str, quantization: str, device: str, dtype: "torch.dtype"
) -> "PreTrainedModel":
    with _usable_or_error(folder):
        _, kind = _config_and_class(folder)
        model = kind.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, **_quantizer(quantization, dtype)
        )
    if quantization == "int8":  # it would log a line for every call of every layer
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return without_pooler(model).eval().requires_grad_(requires_grad=False)


def _quantizer(quantization: str, dtype: "torch.dtype") -> Mapping[str, Any]:
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def _load_tokenizer(folder: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    with _usable_or_error(folder):
        return AutoTokenizer.from_pretrained(folder)


@contextlib.contextmanager
def _usable_or_error(folder: str) -> Iterator[None]:
    """Turn what transformers says of an unusable folder into one sentence."""
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        msg = (
            f"{folder} does not load as a decoder or encoder with its tokenizer "
            f"({first_line(error)}): give the id or path of a model for AutoModelForCausalLM, or "
            "of an encoder such as BERT."
        )
        raise ModelNotFound(msg) from error


def _sha256(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
