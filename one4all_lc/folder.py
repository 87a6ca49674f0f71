"""An expert folder on disk: read whole, and refused with one sentence if anything is wrong.

Nothing here imports torch: a folder is checked from its bytes before any of it reaches a model.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, deserialize

from one4all_lc.card import BaseFacts, ExpertCard, parse_json, read_json
from one4all_lc.errors import UnfitExpert
from one4all_lc.writing import replace_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
EXEMPLARS_FILE = "exemplars.jsonl"
OOS = "oos"
"""The label of exemplars that are nobody's question."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LOOKUP = r"(.*\.)?({})$"  # how PEFT matches a pattern's key with a module path
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# PEFT options that change more than x @ A @ B, with the values that leave them off. vLLM refuses
# the same ones, so a folder that passes here is served there too.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}

LARGEST = 65504.0
"""The largest number of float16: beyond it rows could overflow, and zero times infinity is NaN."""


@dataclass(frozen=True)
class Exemplar:
    """A question of the expert's domain, written the way people ask.

    Attributes:
        text: The question.
        language: ISO 639-1 code.
        label: Empty, or `oos` for a question that is nobody's: it shows where the domain ends.
    """

    text: str
    language: str = "en"
    label: str = ""


@dataclass(frozen=True)
class LoraFactor:
    """One linear layer's share of an adapter: y += (x @ A.T) @ B.T * scale.

    Attributes:
        rank: Rows of A, columns of B.
        scale: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
        in_features: Columns of A.
        out_features: Rows of B.
    """

    rank: int
    scale: float
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Expert:
    """A checked expert folder.

    Attributes:
        folder: Where it lies.
        card: Its `expert.json`.
        exemplars: Its `exemplars.jsonl`.
        factors: Module path in the base to that layer's factor.
        identity: SHA-256 over weights and scales: what caches and logs are keyed by.
    """

    folder: Path
    card: ExpertCard
    exemplars: tuple[Exemplar, ...]
    factors: Mapping[str, LoraFactor]
    identity: str

    @property
    def name(self) -> str:
        """The expert's name, which is the folder's."""
        return self.card.name

    @property
    def weights_file(self) -> Path:
        """The adapter's safetensors file."""
        return self.folder / WEIGHTS_FILE


def read_expert(folder: str | Path, base: BaseFacts | None = None) -> Expert:
    """Read and check one expert folder.

    Args:
        folder: The folder; its name must be the card's.
        base: The base that will carry it; None checks the folder by itself.

    Raises:
        UnfitExpert: Anything in the folder is broken or does not fit `base`.
    """
    try:
        return _read_expert(Path(folder), base)
    except OSError as error:
        what = f"{str(error.filename)[:200]!r} cannot be read ({error.strerror})"
        _refuse(Path(str(folder)[:200]), what, "name a readable folder")


def _read_expert(folder: Path, base: BaseFacts | None) -> Expert:
    if not folder.is_dir():
        msg = f"{folder} is not an expert folder: there is no such directory."
        raise UnfitExpert(msg)
    card = ExpertCard.read(folder)
    if card.name != folder.resolve().name:
        _refuse(folder, f"its card is named {card.name!r}", "rename the folder or the card")
    if base is not None:
        _check_base(folder, card, base)
    factors, weights_sha256 = _read_adapter(folder)
    if weights_sha256 != card.weights_sha256:
        hashes = f"{weights_sha256[:12]}…, its card says {card.weights_sha256[:12]}…"
        how = "the weights were changed or cut off: train or copy the expert again"
        _refuse(folder, f"{WEIGHTS_FILE} hashes to {hashes}", how)
    if base is not None:
        _check_layers(folder, factors, base)
    scales = json.dumps({name: factor.scale for name, factor in sorted(factors.items())})
    identity = hashlib.sha256((weights_sha256 + scales).encode()).hexdigest()
    return Expert(folder, card, read_exemplars(folder), factors, identity)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_exemplars(folder: Path) -> tuple[Exemplar, ...]:
    """Read `exemplars.jsonl`; a folder without one has no exemplars.

    Raises:
        UnfitExpert: A line is not `{"text": ..., "language": ...}`.
    """
    path = folder / EXEMPLARS_FILE
    if not path.exists() and not path.is_symlink():
        return ()
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    exemplars = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut JSON strings
        if not line.strip():
            continue
        try:
            exemplar = Exemplar(**parse_json(line))
        except (ValueError, TypeError):
            exemplar = Exemplar("")
        values = (exemplar.text, exemplar.language)
        known = exemplar.label in ("", OOS)
        if not known or not all(isinstance(value, str) and value.strip() for value in values):
            what = f"line {number} of {EXEMPLARS_FILE} is {line[:60]!r}"
            _refuse(folder, what, 'write {"text": "a question", "language": "en"}')
        exemplars.append(exemplar)
    return tuple(exemplars)


def write_exemplars(folder: Path, exemplars: Iterable[Exemplar]) -> None:
    """Write `exemplars.jsonl` into `folder`: whoever reads meanwhile finds the old ones whole.

    Raises:
        InvalidInput: It cannot be written; the old one stays.
    """
    rows = [
        {"text": item.text, "language": item.language} | ({"label": OOS} if item.label else {})
        for item in exemplars
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "".join(f"{line}\n" for line in lines)
    replace_text(folder / EXEMPLARS_FILE, text)


def _refuse(folder: Path, what: str, how: str) -> NoReturn:
    msg = f"{folder} cannot be used: {what}; {how}."
    raise UnfitExpert(msg)


def _check_base(folder: Path, card: ExpertCard, base: BaseFacts) -> None:
    difference = card.fingerprint.difference(base.fingerprint)
    if difference:
        what = f"it was trained on {card.base!r}, whose {difference} is not that of {base.id!r}"
        how = "load the base that it was trained on, or train the expert on this one"
        _refuse(folder, what, how)


def _check_layers(folder: Path, factors: Mapping[str, LoraFactor], base: BaseFacts) -> None:
    for module, factor in factors.items():
        given, wanted = (factor.out_features, factor.in_features), base.linears.get(module)
        if wanted is None:
            what = f"its tensors for {module!r} match no linear layer of {base.id!r}"
            _refuse(folder, what, "target linear layers that the base has")
        if given != wanted:
            what = f"its tensors for {module!r} make {given} where the base has {wanted} (out, in)"
            _refuse(folder, what, "train it on this base")


def _read_adapter(folder: Path) -> tuple[dict[str, LoraFactor], str]:
    """Check PEFT's two files; return the factors by module and the weights' SHA-256."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        what = f"{pickles[0]} is a pickle, which can run code when it is loaded"
        _refuse(folder, what, "save the adapter as safetensors and remove the pickle")
    config = read_json(folder / CONFIG_FILE)
    _check_config(folder, config)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        _refuse(folder, f"{WEIGHTS_FILE} is missing", "save the adapter as safetensors")
    content = weights.read_bytes()
    sides: dict[str, dict[str, tuple[int, int]]] = {}
    for name, dtype, shape, raw in _tensors(folder, content):
        match = TENSOR.fullmatch(name)
        if match is None:
            _refuse(folder, f"tensor {name!r} is not a LoRA A or B", "save plain LoRA weights")
        if len(shape) != 2 or 0 in shape:
            _refuse(folder, f"tensor {name!r} has shape {list(shape)}", "A and B have two axes")
        if dtype not in _FLOATS:
            _refuse(folder, f"tensor {name!r} is of type {dtype}", f"use one of {list(_FLOATS)}")
        if not _finite(dtype, raw):
            what = f"tensor {name!r} holds NaN, infinity or a number beyond {LARGEST:.0f}"
            _refuse(folder, what, "train the expert again")
        sides.setdefault(match["module"], {})[match["side"]] = (shape[0], shape[1])
    if not sides:
        _refuse(folder, f"{WEIGHTS_FILE} holds no tensor", "train the expert again")
    factors = {module: _factor(folder, config, module, pair) for module, pair in sides.items()}
    return factors, hashlib.sha256(content).hexdigest()


def _check_config(folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else config
        _refuse(folder, f"{CONFIG_FILE} has peft_type {got!r}", "only LORA adapters are served")
    for option, harmless in UNSUPPORTED.items():
        value = config.get(option)
        if not any(value is item or value == item for item in harmless):
            _refuse(folder, f"{CONFIG_FILE} sets {option} to {value!r}", "train it without")
    for option in ("rank_pattern", "alpha_pattern"):
        _check_pattern(folder, option, config.get(option))
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        _refuse(folder, f"{CONFIG_FILE} has rank {ranks}", "a rank is a whole number from 1")
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    if any(type(alpha) not in (int, float) or not abs(alpha) <= LARGEST for alpha in alphas):
        how = f"alpha is a number up to {LARGEST:.0f}"
        _refuse(folder, f"{CONFIG_FILE} has lora_alpha {str(alphas)[:60]}", how)


def _check_pattern(folder: Path, option: str, pattern: Any) -> None:
    try:
        for key in {} if pattern is None else pattern.keys():
            re.compile(_LOOKUP.format(key))
    except (AttributeError, re.error, OverflowError, RecursionError):
        what = f"{CONFIG_FILE} sets {option} to {repr(pattern)[:60]}"
        _refuse(folder, what, "map regular expressions of module names to numbers")


def _factor(
    folder: Path, config: dict[str, Any], module: str, sides: dict[str, tuple[int, int]]
) -> LoraFactor:
    """Join the A and B of one module; their shapes and the configured rank must agree."""
    if len(sides) == 1:
        (side,) = sides
        _refuse(folder, f"{module!r} has lora_{side} without its partner", "save both")
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    (a_rank, in_features), (out_features, b_rank) = sides["A"], sides["B"]
    if not a_rank == b_rank == rank:
        what = f"{module!r} has rank {a_rank} (A) and {b_rank} (B), {CONFIG_FILE} says {rank}"
        _refuse(folder, what, "save weights and configuration together")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoraFactor(rank, scale, in_features, out_features)


def _pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Look a module up as PEFT does: the first key that matches the end of its path."""
    for key, value in (pattern or {}).items():
        if re.match(_LOOKUP.format(key), module):
            return value
    return default


def _tensors(folder: Path, content: bytes) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Yield (name, dtype, shape, raw bytes), parsed by the library that will load them.

    Raw bytes, since numpy knows no bfloat16 and torch must not be imported to check a folder.
    """
    try:
        tensors = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        what = f"{WEIGHTS_FILE} is not a whole safetensors file ({error})"
        _refuse(folder, what, "save or copy it again")
    for name, tensor in tensors:
        yield name, tensor["dtype"], tuple(tensor["shape"]), tensor["data"]


_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _finite(dtype: str, raw: bytes) -> bool:
    values = np.frombuffer(raw, _FLOATS[dtype])
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return bool(np.all(np.abs(values) <= LARGEST))
