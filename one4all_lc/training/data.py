"""Rows of JSONL to examples to learn from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from one4all_lc.card import parse_json
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.messages import Turn, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        question: What the user says, with the row's context or columns in it.
        answer: What the expert should say.
        split: `train`, `dev` or `test`.
    """

    question: str
    answer: str
    split: str = "train"


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


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """Read `{"question", "answer", "split"}` rows, with optional `context` or `columns`.

    Raises:
        InvalidInput: A file is missing or empty, or a line is not such a row; the message names
            the file and the line.
    """
    return [row for path in paths for row in _rows_of(Path(path))]


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
    examples, left_out = [], 0
    for row in rows:
        turns: list[Turn] = [{"role": "user", "content": row.question}]
        if system_prompt:
            turns.insert(0, {"role": "system", "content": system_prompt})
        answer = tokenizer.encode(row.answer, add_special_tokens=False)
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        example = Example(tuple(render(tokenizer, turns)), (*answer, *end))
        if len(example) > max_tokens:
            left_out += 1
        else:
            examples.append(example)
    return examples, left_out


def _rows_of(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        msg = f"{path} is not there: give a JSONL file of questions and answers."
        raise InvalidInput(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as UTF-8 text ({error}): give a JSONL file."
        raise InvalidInput(msg) from error
    if not any(line.strip() for line in lines):
        msg = f"{path} is empty: give a JSONL file of questions and answers."
        raise InvalidInput(msg)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(f"{path}, line {number}", line)


def _row(where: str, line: str) -> Row:
    try:
        values = parse_json(line)
    except ValueError as error:
        _refuse(where, f"is not JSON ({error})", line)
    if not isinstance(values, dict):
        _refuse(where, "is not an object", line)
    for field in ("question", "answer"):
        if not isinstance(values.get(field), str) or not values[field].strip():
            _refuse(where, f"has no text under {field!r}", line)
    columns, context = values.get("columns"), values.get("context")
    if columns is not None and not _strings(columns):
        _refuse(where, "has 'columns' that are not a list of strings", line)
    if context is not None and not isinstance(context, str):
        _refuse(where, "has a 'context' that is not text", line)
    split = values.get("split", "train")
    if split not in SPLITS:
        _refuse(where, f"has split {split!r}, which is none of {list(SPLITS)}", line)
    return Row(ask_about(values["question"], columns, context), values["answer"].strip(), split)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _refuse(where: str, what: str, line: str) -> NoReturn:
    msg = (
        f"{where} {what}: {line[:80]!r}. "
        'Write {"question": "...", "answer": "...", "split": "train"}.'
    )
    raise InvalidInput(msg)
