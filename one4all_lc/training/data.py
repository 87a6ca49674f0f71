"""Rows of data to examples to learn from."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.messages import Turn, render
from one4all_lc.training.sources import (
    SPLITS,
    WRITE,
    Place,
    Read,
    Record,
    Unreadable,
    all_sources,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOWHERE = Place("")


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        question: What the user says, with the row's context or columns in it.
        answer: What the expert should say.
        split: `train`, `dev` or `test`.
        place: Where it was read; two rows are equal wherever they stand.
        id: What the data calls it, if it does.
        marked: Whether a byte order mark stood before it.
    """

    question: str
    answer: str
    split: str = "train"
    place: Place = field(default=NOWHERE, compare=False)
    id: str | None = field(default=None, compare=False)
    marked: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Example:
    """A row as token ids.

    Attributes:
        prompt: The conversation up to where the answer begins.
        answer: The answer and the end token: the only tokens that are learned.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def learned(self) -> int:
        """Tokens that are learned."""
        return len(self.answer)


@dataclass(frozen=True)
class Fields:
    """What the data calls its fields: keys of JSON, or a CSV's columns.

    Attributes:
        question: What is asked.
        answer: What the expert should say.
        context: A text that the answer should come from.
        columns: Names of a table's columns; in CSV separated by commas.
        split: `train`, `dev` or `test`.
        id: A name of the row.
        text: What is labelled.
        label: Its label.
        labels: Its labels, where it may have several.
        premise: What is given.
        hypothesis: What is judged by it.
        entities: Of a text.
        tags: BIO tags of its words instead.
        start: Where in the context the answer begins, in characters.
        also: Other answers that are right.
    """

    question: str = "question"
    answer: str = "answer"
    context: str = "context"
    columns: str = "columns"
    split: str = "split"
    id: str = "id"
    text: str = "text"
    label: str = "label"
    labels: str = "labels"
    premise: str = "premise"
    hypothesis: str = "hypothesis"
    entities: str = "entities"
    tags: str = "tags"
    start: str = "answer_start"
    also: str = "alt_answers"


def ask_about(
    question: str, columns: Sequence[str] | None = None, context: str | None = None
) -> str:
    """Write a question as the experts were taught to read it.

    Args:
        question: The question itself.
        columns: A table's column names, for experts that write queries.
        context: A text that the answer should come from.
    """
    if columns:
        return f"{question}\nColumns: {', '.join(columns)}"
    return f"{context}\n\n{question}" if context else question


def read_rows(paths: Iterable[str | Path], fields: Fields | None = None) -> list[Row]:
    """Read `{"question", "answer", "split"}` rows, with optional `context` or `columns`.

    Args:
        paths: JSONL, CSV and parquet files, and folders of them or of `datasets.save_to_disk`.
        fields: What these call their fields.

    Raises:
        InvalidInput: A file is missing or empty, or a line is not such a row; the message names
            the file and the line. `checking.check` finds all such lines at once.
    """
    rows = []
    for read in scan(paths, fields):
        if isinstance(read, Unreadable):
            msg = f"{read.place} {read.what}."
            raise InvalidInput(msg)
        rows.append(read)
    return rows


def scan(paths: Iterable[str | Path], fields: Fields | None = None) -> Iterator[Row | Unreadable]:
    """Yield each row, or what is wrong with its line."""
    for read in all_sources(paths):
        yield _row(read, fields or Fields())


def encode(
    rows: Iterable[Row],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str,
    max_tokens: int,
) -> tuple[list[Example], int]:
    """Turn rows into examples, leaving out those that are longer than `max_tokens`.

    Returns:
        The examples, and how many rows were left out.
    """
    examples = [encoded(row, tokenizer, system_prompt) for row in rows]
    fitting = [example for example in examples if len(example) <= max_tokens]
    return fitting, len(examples) - len(fitting)


def encoded(row: Row, tokenizer: "PreTrainedTokenizerBase", system_prompt: str) -> Example:
    """Turn a row into token ids, its prompt as the expert will be asked."""
    turns: list[Turn] = [{"role": "user", "content": row.question}]
    if system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    answer = answer_tokens(tokenizer, row.answer)
    return Example(tuple(render(tokenizer, turns)), answer)


def answer_tokens(tokenizer: "PreTrainedTokenizerBase", answer: str) -> tuple[int, ...]:
    """Return an answer as the expert shall write it, with the token that ends it."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return (*tokenizer.encode(answer, add_special_tokens=False), *end)


def _row(read: Read, fields: Fields) -> Row | Unreadable:
    if isinstance(read, Unreadable):
        return read
    wrong = next(_wrong(read, fields), None)
    if wrong is not None:
        kind, what = wrong
        shown = repr(str(read.values))[:82]
        write = WRITE.replace("question", fields.question).replace("answer", fields.answer)
        return Unreadable(read.place, kind, f"{what}: {shown}. {write}")
    values = read.values
    question = ask_about(
        values[fields.question], _columns(read, fields), values.get(fields.context)
    )
    name = values.get(fields.id)
    return Row(
        question,
        values[fields.answer].strip(),
        values.get(fields.split) or read.split or "train",
        place=read.place,
        id=None if name in (None, "") else str(name),
        marked=read.marked,
    )


def _wrong(read: Record, fields: Fields) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a record's fields: a word for it, and words."""
    values = read.values
    for name in (fields.question, fields.answer):
        value = values.get(name)
        if name not in values:
            yield "field", f"has no text under {name!r}; its fields are {list(values)[:12]}"
        elif not isinstance(value, str):
            yield "type", f"has no text under {name!r} but {type(value).__name__}"
        elif not value.strip():
            yield "empty_field", f"has no text under {name!r}"
        elif "\0" in value:
            yield "nul", f"holds a NUL character under {name!r}"
    if not _strings(_columns(read, fields) or []):
        yield "type", f"has {fields.columns!r} that are not a list of strings"
    context = values.get(fields.context)
    if context is not None and not isinstance(context, str):
        yield "type", f"has a {fields.context!r} that is not text"
    split = values.get(fields.split, "train")
    if split not in SPLITS and not (read.tabular and split in ("", None)):
        yield "split", f"has split {split!r}, which is none of {list(SPLITS)}"


def _columns(read: Record, fields: Fields) -> Any:
    columns = read.values.get(fields.columns)
    if read.tabular and isinstance(columns, str):
        return [name.strip() for name in columns.split(",") if name.strip()]
    return columns


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def normal(text: str) -> str:
    """Return a text without what makes no difference: case, white space, punctuation around it."""
    return re.sub(r"\s+", " ", text).strip(" .?!\t\n").casefold()
