"""The card of an expert: what it is, which base it fits, how to prompt it, what it measured."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.head import CHAT, HeadFacts, wrong_labels
from one4all_lc.sampling import Sampling

CARD_FILE = "expert.json"
BASE = "base"
"""The name that asks for the base alone, without an adapter: no expert may bear it."""

PERPLEXITY = "perplexity"
METRICS_OF = {
    CHAT: ("rouge_l", "exact_match", "first_word", PERPLEXITY),
    "classify": ("accuracy", "macro_f1"),
    "pair": ("accuracy", "macro_f1"),
    "tag": ("entity_f1",),
    "extract": ("span_f1", "exact_match", "answerable_f1", "no_answer_accuracy"),
}
"""What may decide, by kind, whether a version is better than another: the first unless told."""

METRICS = tuple(dict.fromkeys(name for names in METRICS_OF.values() for name in names))
"""All of them, beside a scorer of the user's own."""

KINDS = (CHAT, "classify", "tag", "extract", "pair")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
SCORER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BaseFingerprint:
    """What an adapter depends on in its base, hashed: names never identify weights.

    Attributes:
        architecture: The model class, `LlamaForCausalLM` for example.
        shapes: SHA-256 over the name and shape of every linear layer and of the embeddings.
        tokenizer: SHA-256 over the vocabulary and the encoding of a probe text.
        chat_template: SHA-256 of the chat template, empty if the tokenizer has none.
    """

    architecture: str
    shapes: str
    tokenizer: str
    chat_template: str

    def difference(self, other: "BaseFingerprint") -> str | None:
        """Say which part differs from `other`, in words; None if they are equal."""
        for item in dataclasses.fields(self):
            if getattr(self, item.name) != getattr(other, item.name):
                return item.name.replace("_", " ")
        return None


@dataclass(frozen=True)
class BaseFacts:
    """A base as an adapter sees it, known without loading its weights.

    Attributes:
        id: The hub id or path under which the base was asked for.
        fingerprint: The hashes that an expert's card is compared with.
        linears: Every linear layer that can carry an adapter: module path to (out, in) features.
        width: Of the hidden states, which the heads of encoder experts read; 0 if unknown.
        encodes: Whether it is an encoder, for experts that decide, and not a decoder that writes.
    """

    id: str
    fingerprint: BaseFingerprint
    linears: Mapping[str, tuple[int, int]]
    width: int = 0
    encodes: bool = False


@dataclass(frozen=True, kw_only=True)
class ExpertCard:
    """`expert.json`: one expert's facts.

    Attributes:
        name: The folder's name, `^[a-z0-9][a-z0-9_-]{0,62}$`; `base` is reserved.
        title: A few words for people.
        description: What the expert is for; the router and tool schemas read it.
        kind: `chat`, or for encoder bases `classify`, `tag`, `extract`, `pair`.
        languages: ISO 639-1 codes of the questions that it was made for.
        base: Hub id of the base that it was trained on.
        fingerprint: Hashes of that base.
        system_prompt: Put before every conversation, in training as in use.
        generation: Defaults of `sampling.Sampling` by name, `{"max_tokens": 96}`.
        labels: The labels of encoder kinds, in the order of the head's rows; BIO tags for `tag`,
            none for `extract`.
        head: Of encoder kinds, `head.HeadFacts` by name: hash, pooling, threshold and the like.
        training: Data, license, rows, steps, seed and hyper-parameters.
        metrics: Base against expert on held-out rows.
        metric: Which of them decides whether a new version may replace this one: one of
            `METRICS`, or `module:function` of a scorer.
        version: Counts up with every training that replaced the weights.
        weights_sha256: SHA-256 of `adapter_model.safetensors`.
    """

    name: str
    title: str
    description: str
    base: str
    fingerprint: BaseFingerprint
    weights_sha256: str
    kind: str = CHAT
    languages: tuple[str, ...] = ("en",)
    system_prompt: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    head: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "rouge_l"
    version: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in ("title", "description", "base"):
            if not str(getattr(self, name)).strip():
                msg = f"The card of {self.name!r} has an empty {name!r}: write one sentence."
                raise UnfitExpert(msg)
        if self.kind not in KINDS:
            msg = f"The card of {self.name!r} has kind {self.kind!r}: use one of {list(KINDS)}."
            raise UnfitExpert(msg)
        if self.metric not in METRICS and not SCORER.fullmatch(self.metric):
            msg = (
                f"The card of {self.name!r} has metric {self.metric!r}: use one of "
                f"{list(METRICS)}, or module:function."
            )
            raise UnfitExpert(msg)
        if self.version < 1:
            msg = f"The card of {self.name!r} has version {self.version}: versions start at 1."
            raise UnfitExpert(msg)
        if not SHA256.fullmatch(self.weights_sha256):
            msg = (
                f"The card of {self.name!r} has weights_sha256 {self.weights_sha256!r}: "
                "give the 64 hexadecimal digits of the adapter file's SHA-256."
            )
            raise UnfitExpert(msg)
        wrong = _wrong_generation(self.generation)
        if wrong:
            msg = f"The card of {self.name!r} has a wrong 'generation': {wrong}."
            raise UnfitExpert(msg)
        self._check_head()

    def _check_head(self) -> None:
        if (self.kind == CHAT) != (not self.head):
            how = "a chat expert has none" if self.head else "say at least its 'sha256'"
            msg = (
                f"The card of {self.name!r} is of kind {self.kind!r} with head {self.head}: {how}."
            )
            raise UnfitExpert(msg)
        if self.kind == CHAT:
            return
        wrong = wrong_labels(self.kind, self.labels)
        if wrong:
            msg = f"The card of {self.name!r} ({self.kind}) has wrong 'labels': {wrong}."
            raise UnfitExpert(msg)
        try:
            HeadFacts.of(self.head)
        except UnfitExpert as error:
            msg = f"The card of {self.name!r} has a wrong 'head': {error}."
            raise UnfitExpert(msg) from None

    @property
    def head_facts(self) -> HeadFacts | None:
        """What is said of the head; None for a chat expert."""
        return None if self.kind == CHAT else HeadFacts.of(self.head)

    def as_dict(self) -> dict[str, Any]:
        """Return the card as JSON-ready values, in the order of its fields."""
        values = dataclasses.asdict(self)
        return values if self.head else {k: v for k, v in values.items() if k != "head"}

    @classmethod
    def from_dict(cls, values: Any, source: str = CARD_FILE) -> Self:
        """Build a card from parsed JSON.

        Args:
            values: The parsed document.
            source: Where it came from, for messages.

        Raises:
            UnfitExpert: A field is missing, unknown or of the wrong type.
        """
        checked = _checked(cls, values, source)
        checked["fingerprint"] = BaseFingerprint(
            **_checked(BaseFingerprint, checked["fingerprint"], f"fingerprint in {source}")
        )
        try:
            return cls(**checked)
        except UnfitExpert as error:
            msg = f"{source} is not a valid card: {error}"
            raise UnfitExpert(msg) from None

    def write(self, folder: Path) -> None:
        """Write `expert.json` into `folder`."""
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
        (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `expert.json` of `folder`.

        Raises:
            UnfitExpert: The file is missing, is not JSON, or is not a valid card.
        """
        return cls.from_dict(read_json(folder / CARD_FILE), str(folder / CARD_FILE))


def facts_for_people(name: str, about: Any, card: Mapping[str, Any]) -> dict[str, Any]:
    """Join what is said of an expert with what a card says of it already.

    Args:
        name: The expert's.
        about: An `About` or an `Adoption`: what it has, unless None, has the last word.
        card: The card's values; empty if there is none.

    Raises:
        InvalidInput: Neither describes it.
    """

    def chosen(fact: str, default: Any) -> Any:
        given = getattr(about, fact)
        return card.get(fact, default) if given is None else given

    description = chosen("description", "")
    if not description.strip():
        msg = f"{name!r} is new: describe in a sentence what it is for (--description)."
        raise InvalidInput(msg)
    return {
        "title": chosen("title", name.replace("_", " ").replace("-", " ").capitalize()),
        "description": description,
        "languages": chosen("languages", ("en",)),
        "system_prompt": chosen("system_prompt", ""),
        "generation": chosen("generation", {}),
        "license": about.license or card.get("training", {}).get("license", "unknown"),
    }


def check_name(name: str) -> None:
    """Refuse a name that no expert may bear.

    Raises:
        UnfitExpert: The name is reserved or does not match the pattern.
    """
    if name == BASE or not NAME.fullmatch(name):
        msg = (
            f"{name!r} cannot name an expert: use 1 to 63 lower-case letters, digits, '_' and '-', "
            f"beginning with a letter or digit; {BASE!r} is reserved for the base alone."
        )
        raise UnfitExpert(msg)


def parse_json(text: str) -> Any:
    """Parse JSON as strictly as the standard: every other reader must see the same values.

    Raises:
        ValueError: The text is not JSON, says a key twice, holds NaN, infinity or half a
            surrogate pair, or is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None
    return value


def read_json(path: Path) -> Any:
    """Parse a JSON file of an expert folder.

    Raises:
        UnfitExpert: The file is missing or is not JSON.
    """
    if not path.is_file():
        msg = f"{path} is missing: an expert folder needs {path.name}."
        raise UnfitExpert(msg)
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not readable JSON ({error}): write it anew."
        raise UnfitExpert(msg) from error


def _wrong_generation(generation: Mapping[str, Any]) -> str:
    """Say what cannot be passed on to `Sampling`; nothing if all can."""
    known = [item.name for item in dataclasses.fields(Sampling)]
    unknown = [name for name in generation if name not in known]
    if unknown:
        return f"{unknown[0]!r} is none of {known}"
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in generation.items()
    }
    try:
        Sampling(**values)
    except InvalidInput as error:
        return str(error).rstrip(".")
    return ""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        msg = "a key stands there twice"
        raise ValueError(msg)
    return values


# How JSON shows each annotation that the cards use.
_JSON_TYPES: dict[Any, tuple[type, str]] = {
    str: (str, "a string"),
    int: (int, "a whole number"),
    tuple[str, ...]: (list, "a list of strings"),
    Mapping[str, Any]: (dict, "an object"),
    BaseFingerprint: (dict, "an object"),
}


def _checked(cls: type, values: Any, source: str) -> dict[str, Any]:
    """Return `values` with lists as tuples, once every field is known, present and typed."""
    fields = {item.name: item for item in dataclasses.fields(cls)}
    given = values if isinstance(values, dict) else {}
    required = [
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    wrong = [f"{name!r} is missing" for name in required if name not in given]
    wrong += [f"{name!r} is unknown" for name in given if name not in fields]
    for name in given.keys() & fields.keys():
        expected, words = _JSON_TYPES[fields[name].type]
        value = given[name]
        right = isinstance(value, expected) and not isinstance(value, bool)
        if not right or (expected is list and not all(isinstance(item, str) for item in value)):
            wrong.append(f"{name!r} is {repr(value)[:60]} but must be {words}")
    if wrong:
        msg = f"{source} is not a valid card: {'; '.join(sorted(wrong))}."
        raise UnfitExpert(msg)
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
