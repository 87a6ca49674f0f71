"""A look at the data finds what would spoil a training, and names the line."""

import json
from pathlib import Path

import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.training.checking import check
from one4all_lc.training.data import Fields
from tests.test_data import Letters, row, write


def rows(count: int = 4, split: str = "train", start: int = 0) -> list[str]:
    numbers = range(start, start + count)
    return [row(question=f"Q{n}?", answer=f"A{n}.", split=split) for n in numbers]


class Tokenizer(Letters):
    all_special_tokens = ("<|im_end|>",)


def look(*paths: Path, **options: object):
    return check(paths, Tokenizer(), **({"max_tokens": 60} | options))


GOOD = [*rows(), *rows(2, "dev", 10), *rows(2, "test", 20)]
"""Eight rows; what is appended to them stands on line 9."""

NUL, LATIN, MARK = b'{"question": "a\0b"}', b'{"question": "caf\xe9"}', "\ufeff".encode()

BAD = {
    "not JSON": (["{"], "json", 9),
    "another format": (["question,answer"], "json", 9),
    "cut off": (['{"question": "Q?", "ans'], "json", 9),
    "a field said twice": (['{"question": "a", "question": "b", "answer": "c"}'], "json", 9),
    "not an object": (["[1, 2]"], "object", 9),
    "no question": ([row(question=...)], "field", 9),
    "no answer": ([row(answer=...)], "field", 9),
    "a question that is a number": ([row(question=5)], "type", 9),
    "an answer that is a list": ([row(answer=["A."])], "type", 9),
    "an empty question": ([row(question="  ")], "empty_field", 9),
    "an empty answer": ([row(answer="")], "empty_field", 9),
    "columns that are text": ([row(columns="name")], "type", 9),
    "a context that is a number": ([row(context=5)], "type", 9),
    "an unknown split": ([row(split="validation")], "split", 9),
    "a NUL byte": ([NUL], "nul", 9),
    "a NUL character": ([row(answer="a\0b")], "nul", 9),
    "mixed encodings": ([LATIN], "encoding", 9),
    "an id used twice": ([row(question="R?", id="7"), row(question="S?", id="7")], "id", 10),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused_with_file_and_line_in_one_sentence(tmp_path, name):
    """Lost: hours over a file of a hundred thousand rows, or a training on half of it."""
    lines, kind, line = BAD[name]
    path = write(tmp_path / "rows.jsonl", *GOOD, *lines)
    report = look(path)
    (finding,) = report.refused
    assert (finding.kind, finding.place.line) == (kind, line)
    assert finding.message.startswith(f"{path}, line {line} ")
    assert finding.message.endswith(".")
    assert "\n" not in finding.message
    with pytest.raises(InvalidInput, match=f"rows.jsonl, line {line} "):
        report.raise_refused()


ODD = {
    "a byte order mark": ([MARK + row(question="R?").encode()], "mark", 9),
    "text read wrongly before": ([row(question="caf\ufffd?")], "replaced", 9),
    "a row twice": ([rows(1)[0]], "duplicate", 9),
    "the same but for case and spaces": ([row(question="q0 ", answer="a0")], "duplicate", 9),
    "another answer": ([row(question="Q0?", answer="B.")], "conflict", 9),
    "a row that is held out too": ([row(question="Q20?", answer="A20.")], "leak", 9),
    "a question that is held out too": (
        [row(question="Q20?", answer="Other.")],
        "shared_question",
        9,
    ),
    "too long": ([row(question="R?", answer="A" * 80)], "too_long", 9),
    "the base's own marks": ([row(question="R?", answer="A<|im_end|>B")], "special", 9),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_named_and_trained_around(tmp_path, name):
    """Lost: figures that measure what was learned by heart, or rows that nobody misses."""
    lines, kind, line = ODD[name]
    path = write(tmp_path / "rows.jsonl", *GOOD, *lines)
    report = look(path)
    assert not report.refused
    (finding,) = report.findings
    assert (finding.kind, finding.place.line) == (kind, line)
    assert finding.message.startswith(f"{path}, line {line} ")
    left_out = kind in ("leak", "too_long")
    assert report.left_out == left_out
    assert len(report.rows) == len(GOOD) + 1 - left_out


WHOLE = {
    "an empty file": ([], "empty"),
    "blank lines": (["", " "], "empty"),
    "a mark and nothing": ([MARK], "empty"),
    "no training rows": (rows(3, "dev"), "no_train"),
    "one training row": ([*rows(1), *rows(2, "dev", 5), *rows(2, "test", 7)], "one_row"),
    "all rows too long": ([row(answer="A" * 90)] * 3, "too_long"),
    "another encoding": (["\ufeffx".encode("utf-16")], "encoding"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_teaches_nothing_is_refused(tmp_path, name):
    """Lost: the time of a training on nothing."""
    lines, kind = WHOLE[name]
    path = write(tmp_path / "rows.jsonl", *lines)
    report = look(path)
    assert [finding.kind for finding in report.refused] == [kind]
    assert report.refused[0].message.startswith(str(path))


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path, what):
    path = tmp_path / "gone.jsonl" if what == "missing" else tmp_path
    (finding,) = look(path).refused
    assert finding.kind == what
    assert finding.message.startswith(str(path))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_splits_that_are_missing_are_named(tmp_path, split):
    """Lost: that nothing ends the training early, or that nothing measures the expert."""
    lines = [line for line in GOOD if f'"{split}"' not in line]
    report = look(write(tmp_path / "rows.jsonl", *lines))
    assert not report.refused
    assert [finding.kind for finding in report.findings] == [f"no_{split}"]


def test_good_data_has_no_findings_and_is_counted(tmp_path):
    report = look(write(tmp_path / "rows.jsonl", *GOOD))
    assert report.findings == ()
    assert {split: lengths.rows for split, lengths in report.lengths.items()} == {
        "train": 4,
        "dev": 2,
        "test": 2,
    }
    train = report.lengths["train"]
    example = report.of_split("train")[0]
    assert train.most == train.median == len(example)
    assert train.total == 4 * len(example)
    assert train.answers == 4 * len(example.answer)


def test_every_bad_line_of_every_file_is_found_at_once(tmp_path):
    """Lost: an afternoon of mending one line after another."""
    one = write(tmp_path / "1.jsonl", *GOOD, "{", row(answer=""))
    two = write(tmp_path / "2.jsonl", "[]", *rows(2, start=30))
    report = look(one, two)
    places = [(Path(item.place.file).name, item.place.line) for item in report.refused]
    assert places == [("1.jsonl", 9), ("1.jsonl", 10), ("2.jsonl", 1)]
    with pytest.raises(InvalidInput, match="2 more"):
        report.raise_refused()


def test_the_report_is_json(tmp_path):
    report = look(write(tmp_path / "rows.jsonl", *GOOD, "{"))
    values = json.loads(json.dumps(report.as_dict()))
    assert values["fit"] is False
    assert values["rows"]["train"]["rows"] == 4
    (finding,) = values["findings"]
    assert (finding["kind"], finding["line"], finding["refused"]) == ("json", 9, True)


def test_fields_may_have_other_names(tmp_path):
    line = json.dumps({"asked": "Q?", "said": "A.", "text": "Some text."})
    other = json.dumps({"asked": "R?", "said": "B."})
    fields = Fields(question="asked", answer="said", context="text")
    report = look(write(tmp_path / "rows.jsonl", line, other), fields=fields)
    assert [item.question for item in report.rows] == ["Some text.\n\nQ?", "R?"]
    (finding, _) = look(write(tmp_path / "rows.jsonl", line, other)).refused
    assert "'question'" in finding.message
    assert "asked" in finding.message
