"""The head of an encoder expert: what makes labels of the encoder's hidden states.

It lies beside the adapter in a file of its own, `head.safetensors`, and not among PEFT's
`modules_to_save`: those bear the names of one model class (`classifier`, `score`, `qa_outputs`), so
the same expert would look different on BERT and on ModernBERT; some of those classes come with a
pooler that an encoder base may lack; and `adapter_model.safetensors` stays plain LoRA, which is
what is checked, hashed and served everywhere else. Nothing here imports torch.

    weight (outputs, width)   bias (outputs,)                 always
    dense.weight (width, width)   dense.bias (width,)         optional: tanh of it comes first
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from one4all_lc.errors import UnfitExpert
from one4all_lc.tensors import check_numbers, refuse, tensors_in

HEAD_FILE = "head.safetensors"

CHAT = "chat"
"""The kind of decoder experts: they have no head."""

Pooling = Literal["mean", "first"]

Shapes = Mapping[str, tuple[int, ...]]

POOLED = ("classify", "pair")
"""Kinds whose head reads one vector a text; that of the others reads each token's."""

SPAN = ("start", "end")
"""What the two outputs of an `extract` head score."""

OUTSIDE = "O"
"""The tag of words that belong to no entity."""


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What a card says of its expert's head, under `head`.

    Attributes:
        sha256: SHA-256 of `head.safetensors`.
        pooling: What becomes of a text's tokens: their `mean`, or the `first` one's state.
        several: Whether a text may have several labels, each decided by itself.
        threshold: The least probability that decides a label or an entity; for `extract` by how
            much a span must outscore "no answer". None sets none: the likeliest label always, an
            answer if it outscores "no answer".
        max_tokens: Tokens that a text is read in at once, special ones included; None takes as many
            as the base reads.
    """

    sha256: str
    pooling: Pooling = "mean"
    several: bool = False
    threshold: float | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Read them from a card.

        Raises:
            UnfitExpert: A value is missing, unknown or cannot be used.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown or "sha256" not in values:
            what = f"{unknown[0]!r} is none of {known}" if unknown else "'sha256' is missing"
            raise UnfitExpert(what)
        facts = cls(**values)
        wrong = facts._wrong()
        if wrong:
            raise UnfitExpert(wrong)
        return facts

    def as_dict(self) -> dict[str, Any]:
        """Return what a card holds, without what is None."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    def _wrong(self) -> str:
        if self.pooling not in ("mean", "first"):
            return f"pooling is {self.pooling!r}, which is neither 'mean' nor 'first'"
        if not isinstance(self.several, bool):
            return f"several is {self.several!r}, which is neither true nor false"
        limit = self.threshold
        if limit is not None and not (type(limit) in (int, float) and abs(limit) < 1e6):
            return f"threshold is {limit!r}, which is no number"
        most = self.max_tokens
        if most is not None and not (type(most) is int and most >= 8):
            return f"max_tokens is {most!r}, which is no whole number from 8"
        return ""


def wrong_labels(kind: str, labels: Sequence[str]) -> str:
    """Say what is wrong with the labels of a kind; nothing if they can be used."""
    if len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        return "a label is empty or stands there twice"
    if kind == "extract" and labels:
        return "an expert that extracts has none"
    if kind in POOLED and not labels:
        return "there are none"
    if kind == "tag":
        odd = [label for label in labels if label != OUTSIDE and label[:2] not in ("B-", "I-")]
        if odd or OUTSIDE not in labels:
            return f"tags are {OUTSIDE!r}, 'B-TYPE' and 'I-TYPE'" + (
                f", not {odd[0]!r}" * bool(odd)
            )
    return ""


def outputs_of(kind: str, labels: Sequence[str]) -> int:
    """Return how many numbers a head gives for a text or token."""
    return len(SPAN) if kind == "extract" else len(labels)


def read_head(
    folder: Path, facts: HeadFacts, outputs: int, width: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Check `head.safetensors`; return the shape of each tensor.

    Args:
        folder: The expert's.
        facts: What its card says.
        outputs: Of its kind and labels.
        width: Of the base's hidden states; None takes the file's own.

    Raises:
        UnfitExpert: The file is missing, broken, of other shapes, or not the card's.
    """
    file = folder / HEAD_FILE
    if not file.is_file():
        refuse(folder, f"{HEAD_FILE} is missing", "an encoder's expert needs its head")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != facts.sha256:
        what = f"{HEAD_FILE} hashes to {digest[:12]}…, its card says {facts.sha256[:12]}…"
        refuse(folder, what, "the head was changed or cut off: train or copy the expert again")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, dtype, shape, raw in tensors_in(file, content):
        check_numbers(folder, name, dtype, raw)
        shapes[name] = shape
    weight = shapes.get("weight", (0, 0))
    width = width or (weight[1] if len(weight) == 2 else 0)
    wanted = shapes_of(outputs, width, dense=any(name.startswith("dense.") for name in shapes))
    if shapes != wanted:
        what = f"{HEAD_FILE} holds {_told(shapes)} where {_told(wanted)} is needed"
        refuse(folder, what, "train the expert on this base with the labels of its card")
    return shapes


def shapes_of(outputs: int, width: int, *, dense: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a head's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (outputs, width), "bias": (outputs,)}
    if dense:
        shapes |= {"dense.weight": (width, width), "dense.bias": (width,)}
    return shapes


def _told(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
