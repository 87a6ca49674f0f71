"""Labelled questions: JSONL rows to learn exemplars from, and to measure a router with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from one4all_lc.card import parse_json
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import OOS, Exemplar

SPLITS = ("train", "dev", "test")
TEXTS = ("text", "question")
LANGUAGES = ("language", "lang")


@dataclass(frozen=True)
class Labelled:
    """A question and whose it is.

    Attributes:
        text: The question.
        label: The domain's name, `oos` for nobody's; empty if the row does not say.
        split: `train`, `dev` or `test`.
        language: ISO 639-1 code.
    """

    text: str
    label: str
    split: str = "train"
    language: str = "en"


def read_labelled(paths: Iterable[str | Path], label: str | None = "label") -> list[Labelled]:
    """Read `{"text", "label", "split"}` rows; `question` stands for `text` in rows of experts.

    Args:
        paths: JSONL files.
        label: The field with the label; None takes `label` from the rows that have one.

    Raises:
        InvalidInput: A file is missing or empty, or a line is not such a row; the message names
            the file and the line.
    """
    return [row for path in paths for row in _rows_of(Path(path), label)]


def held_out(rows: Sequence[Labelled]) -> list[Labelled]:
    """Return the rows to measure with: those of split `test`, or else of `dev`.

    Raises:
        InvalidInput: There are neither.
    """
    for split in ("test", "dev"):
        found = [row for row in rows if row.split == split]
        if found:
            return found
    msg = "None of the rows has split 'test' or 'dev': there is nothing to measure with."
    raise InvalidInput(msg)


def draw(rows: Iterable[Labelled], count: int, seed: int) -> dict[str, tuple[Exemplar, ...]]:
    """Draw exemplars for each label from the rows of split `train`, `oos` among the labels.

    Args:
        rows: The rows.
        count: How many of each label; all where there are fewer.
        seed: The same one draws the same rows.

    Returns:
        The exemplars by label, in the labels' order; a text stands once for each label.
    """
    texts: dict[str, dict[str, Labelled]] = {}
    for row in rows:
        if row.split == "train":
            texts.setdefault(row.label, {})[row.text] = row
    generator = Random(seed)
    drawn = {}
    for label in sorted(texts):
        found = list(texts[label].values())
        chosen = generator.sample(found, min(count, len(found)))
        drawn[label] = tuple(Exemplar(row.text, row.language) for row in chosen)
    return drawn


def _rows_of(path: Path, label: str | None) -> Iterator[Labelled]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        msg = f"{path} is not there: give a JSONL file of labelled questions."
        raise InvalidInput(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as UTF-8 text ({error}): give a JSONL file."
        raise InvalidInput(msg) from error
    if not any(line.strip() for line in lines):
        msg = f"{path} is empty: give a JSONL file of labelled questions."
        raise InvalidInput(msg)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(f"{path}, line {number}", line, label)


def _row(where: str, line: str, label: str | None) -> Labelled:
    try:
        values = parse_json(line)
    except ValueError as error:
        _refuse(where, f"is not JSON ({error})", line)
    if not isinstance(values, dict):
        _refuse(where, "is not an object", line)
    text = _text(values, TEXTS)
    if text is None:
        _refuse(where, "has no text under 'text'", line)
    whose = _text(values, (label or "label",))
    if whose is None and label is not None:
        _refuse(where, f"has no text under {label!r}", line)
    split = values.get("split", "train")
    if split not in SPLITS:
        _refuse(where, f"has split {split!r}, which is none of {list(SPLITS)}", line)
    return Labelled(text, whose or "", split, _text(values, LANGUAGES) or "en")


def _text(values: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    found = (values[field] for field in fields if isinstance(values.get(field), str))
    return next((text.strip() for text in found if text.strip()), None)


def _refuse(where: str, what: str, line: str) -> NoReturn:
    msg = (
        f"{where} {what}: {line[:80]!r}. "
        f'Write {{"text": "...", "label": "sql", "split": "test"}}, label {OOS!r} for nobody\'s.'
    )
    raise InvalidInput(msg)
