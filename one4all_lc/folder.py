"""An expert folder on disk: read whole, and refused with one sentence if anything is wrong.

Nothing here imports torch: a folder is checked from its bytes before any of it reaches a model.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from one4all_lc.card import BaseFacts, ExpertCard, parse_json, read_json
from one4all_lc.errors import UnfitExpert
from one4all_lc.head import CHAT, HEAD_FILE, Shapes, outputs_of, read_head
from one4all_lc.tensors import LARGEST, check_numbers, refuse, tensors_in
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
        identity: SHA-256 over weights, scales and head: what caches and logs are keyed by.
        head: Of encoder experts the shapes of the head's tensors; empty for decoders'.
    """

    folder: Path
    card: ExpertCard
    exemplars: tuple[Exemplar, ...]
    factors: Mapping[str, LoraFactor]
    identity: str
    head: Shapes = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The expert's name, which is the folder's."""
        return self.card.name

    @property
    def weights_file(self) -> Path:
        """The adapter's safetensors file."""
        return self.folder / WEIGHTS_FILE

    @property
    def head_file(self) -> Path:
        """The head's safetensors file."""
        return self.folder / HEAD_FILE


def read_expert(folder: str | Path, base: BaseFacts | Sequence[BaseFacts] | None = None) -> Expert:
    """Read and check one expert folder.

    Args:
        folder: The folder; its name must be the card's.
        base: The base that will carry it, or several of which one will; None checks the folder by
            itself.

    Raises:
        UnfitExpert: Anything in the folder is broken or does not fit `base`.
    """
    try:
        return _read_expert(Path(folder), [base] if isinstance(base, BaseFacts) else base or ())
    except OSError as error:
        what = f"{str(error.filename)[:200]!r} cannot be read ({error.strerror})"
        refuse(Path(str(folder)[:200]), what, "name a readable folder")


def _read_expert(folder: Path, bases: Sequence[BaseFacts]) -> Expert:
    if not folder.is_dir():
        msg = f"{folder} is not an expert folder: there is no such directory."
        raise UnfitExpert(msg)
    card = ExpertCard.read(folder)
    if card.name != folder.resolve().name:
        refuse(folder, f"its card is named {card.name!r}", "rename the folder or the card")
    base = _its_base(card, bases)
    if base is not None:
        _check_base(folder, card, base)
    factors, weights_sha256 = _read_adapter(folder)
    if weights_sha256 != card.weights_sha256:
        hashes = f"{weights_sha256[:12]}…, its card says {card.weights_sha256[:12]}…"
        how = "the weights were changed or cut off: train or copy the expert again"
        refuse(folder, f"{WEIGHTS_FILE} hashes to {hashes}", how)
    if base is not None:
        _check_layers(folder, factors, base)
    scales = json.dumps({name: factor.scale for name, factor in sorted(factors.items())})
    facts, head = card.head_facts, {}
    if facts is not None:
        width = base.width if base else None
        head = read_head(folder, facts, outputs_of(card.kind, card.labels), width)
        scales += json.dumps(facts.as_dict(), sort_keys=True) + json.dumps(card.labels)
    identity = hashlib.sha256((weights_sha256 + scales).encode()).hexdigest()
    return Expert(folder, card, read_exemplars(folder), factors, identity, head)


def _its_base(card: ExpertCard, bases: Sequence[BaseFacts]) -> BaseFacts | None:
    """Return the base that an expert was made for, or the one that it is to be told apart from."""
    same = [base for base in bases if base.fingerprint == card.fingerprint]
    like = [base for base in bases if base.encodes == (card.kind != CHAT)]
    return next(iter([*same, *like, *bases]), None)


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
    return read_exemplars_file(path)


def read_exemplars_file(path: Path) -> tuple[Exemplar, ...]:
    """Read a file of exemplars, of an expert or for one.

    Raises:
        UnfitExpert: A line is not `{"text": ..., "language": ...}`.
        OSError: The file cannot be read.
    """
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
            what = f"line {number} of {path.name} is {line[:60]!r}"
            refuse(path.parent, what, 'write {"text": "a question", "language": "en"}')
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


def _check_base(folder: Path, card: ExpertCard, base: BaseFacts) -> None:
    difference = card.fingerprint.difference(base.fingerprint)
    if difference:
        what = f"it was trained on {card.base!r}, whose {difference} is not that of {base.id!r}"
        how = "load the base that it was trained on, or train the expert on this one"
        refuse(folder, what, how)


def _check_layers(folder: Path, factors: Mapping[str, LoraFactor], base: BaseFacts) -> None:
    for module, factor in factors.items():
        given, wanted = (factor.out_features, factor.in_features), base.linears.get(module)
        if wanted is None:
            what = f"its tensors for {module!r} match no linear layer of {base.id!r}"
            refuse(folder, what, "target linear layers that the base has")
        if given != wanted:
            what = f"its tensors for {module!r} make {given} where the base has {wanted} (out, in)"
            refuse(folder, what, "train it on this base")


def _read_adapter(folder: Path) -> tuple[dict[str, LoraFactor], str]:
    """Check PEFT's two files; return the factors by module and the weights' SHA-256."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        what = f"{pickles[0]} is a pickle, which can run code when it is loaded"
        refuse(folder, what, "save the adapter as safetensors and remove the pickle")
    config = read_json(folder / CONFIG_FILE)
    _check_config(folder, config)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        refuse(folder, f"{WEIGHTS_FILE} is missing", "save the adapter as safetensors")
    content = weights.read_bytes()
    sides: dict[str, dict[str, tuple[int, int]]] = {}
    for name, dtype, shape, raw in tensors_in(weights, content):
        match = TENSOR.fullmatch(name)
        if match is None:
            refuse(folder, f"tensor {name!r} is not a LoRA A or B", "save plain LoRA weights")
        if len(shape) != 2 or 0 in shape:
            refuse(folder, f"tensor {name!r} has shape {list(shape)}", "A and B have two axes")
        check_numbers(folder, name, dtype, raw)
        sides.setdefault(match["module"], {})[match["side"]] = (shape[0], shape[1])
    if not sides:
        refuse(folder, f"{WEIGHTS_FILE} holds no tensor", "train the expert again")
    factors = {module: _factor(folder, config, module, pair) for module, pair in sides.items()}
    return factors, hashlib.sha256(content).hexdigest()


def _check_config(folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else config
        refuse(folder, f"{CONFIG_FILE} has peft_type {got!r}", "only LORA adapters are served")
    for option, harmless in UNSUPPORTED.items():
        value = config.get(option)
        if not any(value is item or value == item for item in harmless):
            refuse(folder, f"{CONFIG_FILE} sets {option} to {value!r}", "train it without")
    for option in ("rank_pattern", "alpha_pattern"):
        _check_pattern(folder, option, config.get(option))
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        refuse(folder, f"{CONFIG_FILE} has rank {ranks}", "a rank is a whole number from 1")
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    if any(type(alpha) not in (int, float) or not abs(alpha) <= LARGEST for alpha in alphas):
        how = f"alpha is a number up to {LARGEST:.0f}"
        refuse(folder, f"{CONFIG_FILE} has lora_alpha {str(alphas)[:60]}", how)


def _check_pattern(folder: Path, option: str, pattern: Any) -> None:
    try:
        for key in {} if pattern is None else pattern.keys():
            re.compile(_LOOKUP.format(key))
    except (AttributeError, re.error, OverflowError, RecursionError):
        what = f"{CONFIG_FILE} sets {option} to {repr(pattern)[:60]}"
        refuse(folder, what, "map regular expressions of module names to numbers")


def _factor(
    folder: Path, config: dict[str, Any], module: str, sides: dict[str, tuple[int, int]]
) -> LoraFactor:
    """Join the A and B of one module; their shapes and the configured rank must agree."""
    if len(sides) == 1:
        (side,) = sides
        refuse(folder, f"{module!r} has lora_{side} without its partner", "save both")
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    (a_rank, in_features), (out_features, b_rank) = sides["A"], sides["B"]
    if not a_rank == b_rank == rank:
        what = f"{module!r} has rank {a_rank} (A) and {b_rank} (B), {CONFIG_FILE} says {rank}"
        refuse(folder, what, "save weights and configuration together")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoraFactor(rank, scale, in_features, out_features)


def _pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Look a module up as PEFT does: the first key that matches the end of its path."""
    for key, value in (pattern or {}).items():
        if re.match(_LOOKUP.format(key), module):
            return value
    return default
