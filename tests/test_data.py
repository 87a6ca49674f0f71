"""Rows to learn from: a line that cannot be used is named, so that a user can mend it."""

import json
from pathlib import Path

import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.training.data import Example, Row, ask_about, encode, read_rows

GOOD = '{"question": "What is a tort?", "answer": "A civil wrong.", "split": "train"}'


def write(path: Path, *lines: str | bytes) -> Path:
    raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def row(**values: object) -> str:
    present = {"question": "Q?", "answer": "A."} | values
    return json.dumps({name: value for name, value in present.items() if value is not ...})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (GOOD, Row("What is a tort?", "A civil wrong.", "train")),
        (row(), Row("Q?", "A.", "train")),
        (row(answer="  A. \n"), Row("Q?", "A.", "train")),
        (row(question="چیست؟"), Row("چیست؟", "A.", "train")),
        (row(columns=["name", "age"]), Row("Q?\nColumns: name, age", "A.", "train")),
        (row(context="Some text."), Row("Some text.\n\nQ?", "A.", "train")),
        (row(columns=None, context=None), Row("Q?", "A.", "train")),
        (row(columns=[]), Row("Q?", "A.", "train")),
        (row(source="a book"), Row("Q?", "A.", "train")),
    ],
)
def test_good_rows(tmp_path: Path, line: str, expected: Row):
    """Lost: the form in which an expert is asked; it would learn another."""
    assert read_rows([write(tmp_path / "rows.jsonl", line)]) == [expected]


def test_files_come_one_after_the_other_with_their_splits(tmp_path: Path):
    """Lost: held-out rows, mixed into those that are learned."""
    one = write(
        tmp_path / "1.jsonl", row(question="1", split="train"), "", row(question="2", split="dev")
    )
    two = write(tmp_path / "2.jsonl", row(question="3", split="test"))
    read = [(item.question, item.split) for item in read_rows([one, str(two)])]
    assert read == [("1", "train"), ("2", "dev"), ("3", "test")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("question,answer", "is not JSON"),
        ('{"question": "Q?", "answer": "A."', "is not JSON"),
        ("[]", "is not an object"),
        ('"Q?"', "is not an object"),
        ("null", "is not an object"),
        (row(question=...), "no text under 'question'"),
        (row(question="  "), "no text under 'question'"),
        (row(question=5), "no text under 'question'"),
        (row(answer=...), "no text under 'answer'"),
        (row(answer=""), "no text under 'answer'"),
        (row(answer=None), "no text under 'answer'"),
        (row(answer=["A."]), "no text under 'answer'"),
        (row(split="validation"), "split 'validation'"),
        (row(split=None), "split None"),
        (row(columns="name"), "'columns' that are not a list of strings"),
        (row(columns=[1]), "'columns' that are not a list of strings"),
        (row(columns={"a": 1}), "'columns' that are not a list of strings"),
        (row(context=["text"]), "'context' that is not text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str):
    """Lost: hours over a file of a hundred thousand rows."""
    path = write(tmp_path / "rows.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(InvalidInput) as refused:
        read_rows([path])
    message = str(refused.value)
    assert f"{path}, line 3 " in message
    assert words in message
    assert "\n" not in message


def test_a_long_bad_line_is_cut_in_the_message(tmp_path: Path):
    """Lost: the terminal, filled by one row."""
    path = write(tmp_path / "rows.jsonl", "x" * 100_000)
    with pytest.raises(InvalidInput) as refused:
        read_rows([path])
    assert len(str(refused.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "rows.jsonl is empty"),
        (["", "  "], "rows.jsonl is empty"),
        ([b'{"question": "caf\xe9"}'], "rows.jsonl, line 1 cannot be read as UTF-8"),
    ],
)
def test_a_file_that_teaches_nothing(tmp_path: Path, lines: list[str | bytes], words: str):
    """Lost: the time of a training on nothing."""
    with pytest.raises(InvalidInput, match=words):
        read_rows([write(tmp_path / "rows.jsonl", *lines)])


@pytest.mark.parametrize(
    ("name", "words"), [("gone.jsonl", "is not there"), ("", "is a folder without data")]
)
def test_no_file(tmp_path: Path, name: str, words: str):
    """Lost: a sentence instead of a traceback for a mistyped path."""
    with pytest.raises(InvalidInput, match=words) as refused:
        read_rows([tmp_path / name])
    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(row(question="\ud83d"), id="half a surrogate pair"),
        pytest.param('{"question": "a", "question": "b", "answer": "c"}', id="a field said twice"),
        pytest.param("[" * 100_000, id="bottomless"),
    ],
)
def test_a_line_that_only_lenient_readers_take(tmp_path: Path, line: str):
    """Lost: a training, to a traceback in the tokenizer after the model was loaded."""
    with pytest.raises(InvalidInput, match="line 1 is not JSON"):
        read_rows([write(tmp_path / "rows.jsonl", line)])


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_only_where_json_lines_end(tmp_path: Path, mark: str):
    """Lost: rows from the web, whose text holds characters that Python counts as line ends."""
    text = f"one{mark}two"
    line = json.dumps({"question": text, "answer": "A."}, ensure_ascii=False)
    (read,) = read_rows([write(tmp_path / "rows.jsonl", line)])
    assert read.question == text


@pytest.mark.parametrize(
    ("columns", "context", "expected"),
    [
        (None, None, "How many?"),
        ([], "", "How many?"),
        (["a", "b c"], None, "How many?\nColumns: a, b c"),
        (None, "A text.", "A text.\n\nHow many?"),
    ],
)
def test_ask_about(columns, context, expected: str):
    """Lost: `one4all_lc`'s callers asking an expert in the form that it was taught."""
    assert ask_about("How many?", columns, context) == expected


class Letters:
    """A tokenizer of single characters: enough to see what is put where."""

    chat_template = None
    eos_token_id: int | None = 0

    def encode(self, text: str, add_special_tokens: bool = True, **_: bool) -> list[int]:
        return [1] * add_special_tokens + [ord(letter) for letter in text]

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(number) for number in ids)


def test_the_answer_and_its_end_are_learned():
    """Lost: an expert that knows where to stop, or that answers in the user's words."""
    tokenizer = Letters()
    (example,), left_out = encode([Row("Q?", "A.")], tokenizer, "Be brief.", 100)
    assert left_out == 0
    assert tokenizer.text(example.prompt) == "\x01Be brief.\n\nQ?\n\n"
    assert tokenizer.text(example.answer) == "A.\x00"
    assert len(example) == len(example.prompt) + 3


def test_without_system_prompt_and_end_token():
    """Lost: bases whose tokenizer has no end token."""
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    (example,), _ = encode([Row("Q?", "A.")], tokenizer, "", 100)
    assert tokenizer.text(example.prompt) == "\x01Q?\n\n"
    assert tokenizer.text(example.answer) == "A."


def test_long_rows_are_left_out_whole_and_counted():
    """Lost: memory, or answers that were taught cut off."""
    rows = [Row("Q?", "A" * length) for length in (1, 4, 5, 90)]
    examples, left_out = encode(rows, Letters(), "", 10)
    assert [len(example) for example in examples] == [7, 10]
    assert left_out == 2
    assert len(Example((1, 2), (3,))) == 3
