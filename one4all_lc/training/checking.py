"""A look at the data before it is learned from: what is refused, left out, or only odd."""

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.errors import InvalidInput
from one4all_lc.training.batches import Lesson
from one4all_lc.training.data import Fields, Row, encoded, normal, scan
from one4all_lc.training.sources import SPLITS, Place, Unreadable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[Any], Sequence[Lesson]]
"""From a row to what is learned of it: of a long text several windows."""

FEWEST_ROWS = 2
"""Training rows: one is an answer by heart, not an expert."""


@dataclass(frozen=True)
class Finding:
    """Something about one row, or about the data as a whole.

    Attributes:
        kind: A word for it: `json`, `leak`, `too_long` and the like.
        place: Where.
        message: One sentence, which begins with the place.
        refused: Whether nothing can be trained before this is mended.
    """

    kind: str
    place: Place
    message: str
    refused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        place = {"file": self.place.file, self.place.unit: self.place.line}
        return {"kind": self.kind, **place, "refused": self.refused, "message": self.message}


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of one split, prompt and answer together; of texts, of their windows.

    Attributes:
        rows: How many.
        median: Half of them have no more.
        p95: 95 of 100 have no more.
        most: None has more.
        total: Of all.
        answers: What is learned: tokens of all answers, or decisions.
    """

    rows: int
    median: int
    p95: int
    most: int
    total: int
    answers: int

    @classmethod
    def of(cls, examples: Sequence[Lesson]) -> "Lengths":
        """Measure examples; there must be one."""
        lengths = sorted(len(example) for example in examples)
        answers = sum(example.learned for example in examples)
        median, p95 = int(statistics.median(lengths)), lengths[int(0.95 * (len(lengths) - 1))]
        return cls(len(lengths), median, p95, lengths[-1], sum(lengths), answers)


@dataclass(frozen=True)
class DataReport:
    """What was found in the data.

    Attributes:
        findings: In the order of the rows; what concerns all of them comes last.
        rows: Those that can be used, of all splits.
        examples: What is learned of each, as token ids.
        left_out: Training rows that can not: too long, or copies of held-out rows.
        labelling: Of experts that decide: the labels, as the examples number them.
    """

    findings: tuple[Finding, ...]
    rows: tuple[Any, ...]
    examples: tuple[Sequence[Any], ...]
    left_out: int
    labelling: Any = None

    def of_split(self, split: str) -> list[Any]:
        """Return the examples of a split."""
        return [
            example
            for row, examples in zip(self.rows, self.examples, strict=True)
            if row.split == split
            for example in examples
        ]

    @property
    def lengths(self) -> Mapping[str, Lengths]:
        """Tokens by split, of those that have rows."""
        parts = {split: self.of_split(split) for split in SPLITS}
        return {split: Lengths.of(examples) for split, examples in parts.items() if examples}

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What must be mended."""
        return tuple(finding for finding in self.findings if finding.refused)

    def raise_refused(self) -> None:
        """Raise InvalidInput with the first finding that must be mended, if there is one."""
        refused = self.refused
        if refused:
            more = f" ({len(refused) - 1} more: see --check)" if len(refused) > 1 else ""
            raise InvalidInput(refused[0].message + more)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "fit": not self.refused,
            "rows": {split: vars(lengths) for split, lengths in self.lengths.items()},
            "left_out": self.left_out,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def check(
    paths: Iterable[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    fields: Fields | None = None,
    system_prompt: str = "",
    max_tokens: int = 512,
) -> DataReport:
    """Read the data and judge every row.

    Args:
        paths: As of `read_rows`.
        tokenizer: The base's.
        fields: What the data calls its fields.
        system_prompt: The expert's, which every row is read with.
        max_tokens: Rows with more are left out.
    """
    special = set(getattr(tokenizer, "all_special_tokens", ()))

    def encode(_: Sequence[Row]) -> Encode:
        return lambda row: [encoded(row, tokenizer, system_prompt)]

    return judge(scan(paths, fields), encode, special, max_tokens)


def judge(
    reads: Iterable[Row | Unreadable],
    encoding: Callable[[Sequence[Any]], Encode],
    special: Collection[str],
    max_tokens: int,
) -> DataReport:
    """Judge every row.

    Args:
        reads: Rows, and what cannot be read.
        encoding: Makes, of all rows, what encodes one.
        special: Marks of the base's own.
        max_tokens: Rows with more are left out.
    """
    findings: list[Finding] = []
    rows: list[Row] = []
    for read in reads:
        if isinstance(read, Unreadable):
            findings.append(_finding(read.kind, read.place, f"{read.what}.", refused=True))
        else:
            rows.append(read)
    findings += _of_rows(rows)
    leaks = {id(row) for row in _copies_of_held_out(rows)}
    findings += (_finding("leak", row.place, LEAK) for row in rows if id(row) in leaks)
    encode = encoding(rows)
    pairs = []
    for row in rows:
        if id(row) in leaks:
            continue
        try:
            pairs.append((row, encode(row)))
        except InvalidInput as error:
            findings.append(_finding("text", row.place, f"cannot be read: {error}", refused=True))
    findings += _of_tokens(pairs, special, max_tokens)
    fitting = [(row, found) for row, found in pairs if _longest(found) <= max_tokens]
    if not any(finding.refused for finding in findings):
        findings += _of_all(rows, [row for row, _ in fitting], max_tokens)
    usable = [row for row, _ in fitting]
    left_out = sum(row.split == "train" for row in rows) - sum(
        row.split == "train" for row in usable
    )
    examples = tuple(found for _, found in fitting)
    return DataReport(tuple(findings), tuple(usable), examples, left_out)


def _longest(examples: Sequence[Lesson]) -> int:
    return max(map(len, examples), default=0)


LEAK = "is a copy of a held-out row and is left out, or its figures would be no measure."


def _finding(kind: str, place: Place, what: str, *, refused: bool = False) -> Finding:
    return Finding(kind, place, f"{place} {what}", refused)


def _of_rows(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge rows by their text, each against those before it."""
    ids: dict[str, Row] = {}
    questions: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.marked:
            yield _finding("mark", row.place, "begins with a byte order mark, which is ignored.")
        if "\ufffd" in row.question + row.answer:
            yield _finding(
                "replaced", row.place, "holds U+FFFD: it was read in a wrong encoding before."
            )
        if row.id is not None and (first := ids.setdefault(row.id, row)) is not row:
            yield _repeated_id(row, first)
        key = (row.split, normal(row.question))
        if (first := questions.setdefault(key, row)) is not row:
            yield _repeated_question(row, first)


def _repeated_id(row: Row, first: Row) -> Finding:
    what = f"has the id {row.id!r}, as {first.place} has: give every row an id of its own."
    return _finding("id", row.place, what, refused=True)


def _repeated_question(row: Row, first: Row) -> Finding:
    if normal(row.answer) == normal(first.answer):
        return _finding("duplicate", row.place, f"repeats {first.place}, and is learned twice.")
    what = f"answers the question of {first.place} otherwise, and both are learned."
    return _finding("conflict", row.place, what)


def _copies_of_held_out(rows: Sequence[Row]) -> list[Row]:
    """Return the training rows that are held out as well."""
    held_out = {_text(row) for row in rows if row.split != "train"}
    return [row for row in rows if row.split == "train" and _text(row) in held_out]


def _text(row: Row) -> tuple[str, str]:
    return normal(row.question), normal(row.answer)


def _of_tokens(
    pairs: Sequence[tuple[Row, Sequence[Lesson]]], special: Collection[str], max_tokens: int
) -> Iterator[Finding]:
    """Judge rows by their tokens."""
    held_out = {normal(row.question) for row, _ in pairs if row.split == "test"}
    for row, examples in pairs:
        if _longest(examples) > max_tokens:
            what = f"has {_longest(examples):,} tokens, over {max_tokens:,}, and is left out."
            yield _finding("too_long", row.place, what)
        if inside := [token for token in special if token in row.question + row.answer]:
            what = f"holds {inside[0]!r}, which the base reads as one of its own marks."
            yield _finding("special", row.place, what)
        if row.split == "train" and normal(row.question) in held_out:
            what = "asks what a test row asks, answered otherwise."
            yield _finding("shared_question", row.place, what)


def _of_all(rows: Sequence[Row], usable: Sequence[Row], max_tokens: int) -> Iterator[Finding]:
    """Judge the data as a whole; all of its lines could be read."""
    if not rows:
        return
    whole = Place(rows[0].place.file)
    learned = [row for row in rows if row.split == "train"]
    kept = sum(row.split == "train" for row in usable)
    if not learned:
        what = f"None of the {len(rows)} rows has split 'train': there is nothing to learn."
        yield Finding("no_train", whole, f"{whole}: {what}", refused=True)
    elif not kept:
        what = (
            f"and all other training rows, {len(learned)} in sum, are longer than {max_tokens} "
            "tokens or held out as well: shorten their answers."
        )
        yield _finding("too_long", learned[0].place, what, refused=True)
    elif kept < FEWEST_ROWS:
        what = "is the only training row: one row teaches nothing, give more."
        yield _finding("one_row", learned[0].place, what, refused=True)
    for split, missed in (("dev", _NO_DEV), ("test", _NO_TEST)):
        if learned and not any(row.split == split for row in rows):
            yield Finding(f"no_{split}", whole, f"{whole}: no row has split {split!r}; {missed}.")


_NO_DEV = "nothing ends the training early"
_NO_TEST = "the expert is measured on 'dev' rows, or not at all"
