"""Rows of a kind to windows of tokens, cut as the expert will read them, and what they teach."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.reading import Tokenizing, Tokens, Window
from one4all_lc.experts.text.tag import first_tokens, words_of
from one4all_lc.head import OUTSIDE, POOLED
from one4all_lc.training.batches import IGNORED
from one4all_lc.training.kinds.rows import KindRow


@dataclass(frozen=True)
class KindExample:
    """A window of a row, and what is learned of it.

    Attributes:
        tokens: Ids, special ones included.
        types: For each token 1 if it is of the second text; empty if none is.
        wanted: `classify`, `pair`: the label's number, or for each label 0 or 1 where several may
            hold. `tag`: of each token its tag's number, or IGNORED. `extract`: the first and last
            token of the answer, twice the first token of all for "no answer".
        own: Of `extract`: which tokens may be the answer's.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    wanted: tuple[int, ...]
    own: range = range(0)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def learned(self) -> int:
        """How many decisions are learned."""
        return sum(number >= 0 for number in self.wanted)


@dataclass(frozen=True)
class Labelling:
    """The labels of an expert.

    Attributes:
        kind: Of the expert.
        labels: In the order of the head's outputs.
        several: Whether a text may have several.
    """

    kind: str
    labels: tuple[str, ...]
    several: bool = False

    @classmethod
    def of(cls, kind: str, rows: Sequence[KindRow]) -> Self:
        """Take the labels of training rows, sorted; of types of entities make BIO tags."""
        learned = [row for row in rows if row.split == "train"]
        named = sorted({name for row in learned for name in row.types})
        if kind == "tag":
            return cls(kind, (OUTSIDE, *(f"{side}-{name}" for name in named for side in "BI")))
        if kind == "extract":
            return cls(kind, ())
        return cls(kind, tuple(named), any(row.several for row in learned))

    def number(self, label: str) -> int:
        """Return the head's output for a label; IGNORED if no training row has it."""
        return self.labels.index(label) if label in self.labels else IGNORED

    def most_frequent(self, rows: Sequence[KindRow]) -> str:
        """Return the label that most training rows have."""
        counts = Counter(label for row in rows if row.split == "train" for label in row.labels)
        return max(self.labels, key=lambda label: counts[label])


def encoder_of(
    labelling: Labelling, tokenizing: Tokenizing, max_tokens: int
) -> Callable[[KindRow], list[KindExample]]:
    """Return what makes examples of a row: its windows.

    A row whose other text leaves no room comes as one example of more than `max_tokens`.
    """

    def encode(row: KindRow) -> list[KindExample]:
        texts = [tokenizing.tokens(text) for text in row.texts]
        try:
            windows = _windows(labelling.kind, tokenizing, texts, max_tokens)
        except InvalidInput:
            ids = tuple(token for text in texts for token in text.ids)
            return [KindExample(ids + (0,) * max_tokens, (), ())]
        return _ENCODE[labelling.kind](labelling, row, texts, windows)

    return encode


def _windows(kind: str, tokenizing: Tokenizing, texts: Sequence[Tokens], most: int) -> list[Window]:
    if kind == "pair":
        return tokenizing.windows(texts[0], most, after=texts[1])
    if kind == "extract":
        return tokenizing.windows(texts[1], most, before=texts[0])
    return tokenizing.windows(texts[0], most)


_Encode = Callable[
    [Labelling, KindRow, Sequence[Tokens], Sequence[Window]],
    list[KindExample],
]


def _labelled(
    labelling: Labelling, row: KindRow, _: Sequence[Tokens], windows: Sequence[Window]
) -> list[KindExample]:
    if labelling.several:
        wanted = tuple(int(label in row.labels) for label in labelling.labels)
    else:
        wanted = tuple(labelling.number(label) for label in row.labels[:1])
    return [KindExample(window.tokens, window.types, wanted) for window in windows]


def _tagged(
    labelling: Labelling, row: KindRow, texts: Sequence[Tokens], windows: Sequence[Window]
) -> list[KindExample]:
    words = words_of(row.texts[0])
    numbers = [IGNORED] * len(texts[0].ids)
    for at, tag in zip(first_tokens(texts[0], words), tags_of(words, row), strict=True):
        if at is not None:
            numbers[at] = labelling.number(tag)
    examples = []
    for window in windows:
        wanted = [IGNORED] * len(window.tokens)
        part = window.part
        wanted[window.first : window.first + len(part)] = numbers[part.start : part.stop]
        examples.append(KindExample(window.tokens, window.types, tuple(wanted)))
    return examples


def tags_of(words: Sequence[tuple[int, int]], row: KindRow) -> list[str]:
    """Return the BIO tag of each word: an entity has the words that it touches."""
    tags = []
    spans = iter((*row.spans, None))
    span, begun = next(spans), False
    for start, end in words:
        while span and span[1] <= start:
            span, begun = next(spans), False
        if span and span[0] < end:
            tags.append(f"{'I' if begun else 'B'}-{span[2]}")
            begun = True
        else:
            tags.append(OUTSIDE)
    return tags


def _extracted(
    _: Labelling, row: KindRow, texts: Sequence[Tokens], windows: Sequence[Window]
) -> list[KindExample]:
    first, last = _answer_tokens(row, texts[1])
    examples = []
    for window in windows:
        own = range(window.first, window.first + len(window.part))
        shift = window.first - window.part.start
        inside = first in window.part and last in window.part
        wanted = (first + shift, last + shift) if inside else (0, 0)
        examples.append(KindExample(window.tokens, window.types, wanted, own))
    return examples


def _answer_tokens(row: KindRow, context: Tokens) -> tuple[int, int]:
    """Return the first and last token that stand for the answer; -1 if there is none."""
    if not row.spans:
        return -1, -1
    start, end, _ = row.spans[0]
    own = [i for i, (a, b) in enumerate(context.offsets) if a < end and b > start]
    return (own[0], own[-1]) if own else (-1, -1)


_ENCODE: dict[str, _Encode] = {
    **dict.fromkeys(POOLED, _labelled),
    "tag": _tagged,
    "extract": _extracted,
}
