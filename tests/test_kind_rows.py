"""Rows for experts that decide, and the figures that are made of what they find."""

import json

import numpy as np
import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.training.data import Fields
from one4all_lc.training.kinds.rows import KindRow, read_kind_rows
from one4all_lc.training.kinds.tally import Tally, answer_f1, tallies


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def read(tmp_path, kind, *rows):
    return read_kind_rows(kind, [written(tmp_path, *rows)])


def test_each_kind_is_read(tmp_path):
    (one,) = read(tmp_path, "classify", {"text": "Fine.", "label": "good", "split": "dev"})
    assert (one.texts, one.labels, one.several, one.split) == (("Fine.",), ("good",), False, "dev")
    (one,) = read(tmp_path, "classify", {"text": "Fine.", "labels": ["a", "b"]})
    assert (one.labels, one.several) == (("a", "b"), True)
    (one,) = read(tmp_path, "classify", {"text": "Fine.", "label": 3})
    assert one.labels == ("3",)
    (one,) = read(tmp_path, "pair", {"premise": "A.", "hypothesis": "B.", "label": "no"})
    assert one.texts == ("A.", "B.")
    entity = {"start": 0, "end": 3, "label": "PER"}
    (one,) = read(tmp_path, "tag", {"text": "Ali ran", "entities": [entity]})
    assert one.spans == ((0, 3, "PER"),)
    asked = {"question": "Who?", "context": "Ali met Ali"}
    (one,) = read(tmp_path, "extract", asked | {"answer": "Ali", "answer_start": 8})
    assert one.spans == ((8, 11, "Ali"),)
    (one,) = read(tmp_path, "extract", asked | {"answer": "Ali"})
    assert one.spans == ((0, 3, "Ali"),)
    (one,) = read(tmp_path, "extract", asked | {"answer": None})
    assert one.spans == ()


def test_bio_tags_become_entities_as_seqeval_counts_them(tmp_path):
    text, tags = "a b c d e f", "B-X I-X B-X I-Y O I-X"
    (row,) = read(tmp_path, "tag", {"text": text, "tags": tags})
    assert row.spans == ((0, 3, "X"), (4, 5, "X"), (6, 7, "Y"), (10, 11, "X"))


def test_tables_and_names_of_ones_own(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('review,stars\n"Fine, really.",good\n')
    (row,) = read_kind_rows("classify", [path], Fields(text="review", label="stars"))
    assert (row.texts, row.labels) == (("Fine, really.",), ("good",))
    path.write_text('text,entities\nAli ran,"[{""start"": 0, ""end"": 3, ""label"": ""PER""}]"\n')
    (row,) = read_kind_rows("tag", [path])
    assert row.spans == ((0, 3, "PER"),)


ENTITY = {"start": 0, "end": 3, "label": "PER"}
ASKED = {"question": "Who?", "context": "Ali met Sara"}
WRONG = [
    ("classify", {"label": "good"}, "no text under 'text'"),
    ("classify", {"text": " ", "label": "good"}, "no text under 'text'"),
    ("classify", {"text": 7, "label": "good"}, "but int"),
    ("classify", {"text": "Fine."}, "no label under 'label'"),
    ("classify", {"text": "Fine.", "labels": ["a", "a"]}, "a label twice"),
    ("classify", {"text": "Fine.", "label": "a", "split": "exam"}, "split 'exam'"),
    ("pair", {"premise": "A.", "label": "no"}, "no text under 'hypothesis'"),
    ("tag", {"text": "Ali ran"}, "no list under 'entities'"),
    ("tag", {"text": "Ali", "entities": [ENTITY | {"end": 9}]}, "where nothing stands"),
    ("tag", {"text": "Ali", "entities": [ENTITY | {"text": "Sara"}]}, "'Sara' where 'Ali' stands"),
    ("tag", {"text": "Ali ran", "entities": [ENTITY, ENTITY | {"start": 1}]}, "overlap"),
    ("tag", {"text": "Ali ran", "tags": "B-PER"}, "1 tags for 2 words"),
    ("tag", {"text": "Ali ran", "tags": "PER O"}, "no BIO tag"),
    ("extract", ASKED | {"answer": "Bob"}, "not in the context"),
    ("extract", ASKED | {"answer": "Ali", "answer_start": 4}, "at 4, where 'met' stands"),
    ("extract", {"question": "Who?", "answer": "Ali"}, "no text under 'context'"),
]


@pytest.mark.parametrize(("kind", "row", "words"), WRONG)
def test_bad_data_gets_one_sentence_with_file_and_line(tmp_path, kind, row, words):
    good = {
        "classify": {"text": "Fine.", "label": "good"},
        "pair": {"premise": "A.", "hypothesis": "B.", "label": "no"},
        "tag": {"text": "Ali ran", "entities": []},
        "extract": ASKED | {"answer": "Ali"},
    }[kind]
    with pytest.raises(InvalidInput) as raised:
        read(tmp_path, kind, good, row)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/rows.jsonl, line 2 ")
    assert words in message
    assert 'Write {"' in message
    assert "\n" not in message


def row_of(*, labels=(), spans=(), also=()):
    return KindRow("q", "a", labels=labels, spans=spans, also=also)


def test_accuracy_and_macro_f1_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score

    draw = np.random.default_rng(0)
    right = [str(n) for n in draw.integers(0, 3, 200)]
    found = [r if draw.random() < 0.7 else str(draw.integers(0, 4)) for r in right]
    rows = [row_of(labels=(label,)) for label in right]
    got = tallies("classify", rows, [(label,) for label in found])
    assert got["accuracy"].value == pytest.approx(accuracy_score(right, found))
    assert got["macro_f1"].value == pytest.approx(f1_score(right, found, average="macro"))


# As seqeval 1.2.2 gives them: f1_score of the same tags.
ENTITY_F1 = [
    (["B-P I-P O B-L"], ["B-P I-P O B-L"], 1.0),
    (["B-P I-P O B-L"], ["B-P O O B-L"], 0.5),
    (["B-P I-P O B-L"], ["B-P I-P O B-P"], 0.5),
    (["I-P I-P O B-L", "O O"], ["B-P I-P O B-L", "B-L O"], 0.8),
    (["B-P B-P I-P O"], ["B-P I-P I-P O"], 0.0),
    (["O O"], ["O O"], 0.0),
    (["B-P I-L I-L O", "B-P"], ["B-P B-L I-L O", "O"], 0.8),
]


@pytest.mark.parametrize(("right", "found", "f1"), ENTITY_F1)
def test_entity_f1_is_seqevals(tmp_path, right, found, f1):
    def rows_of(tags):
        rows = [{"text": " ".join("w" * len(line.split())), "tags": line} for line in tags]
        return read(tmp_path, "tag", *rows)

    got = tallies("tag", rows_of(right), [row.spans for row in rows_of(found)])
    assert got["entity_f1"].value == pytest.approx(f1)


def test_spans_are_scored_as_squad_scores_them():
    assert answer_f1("the red house", "red house") == pytest.approx(0.8)
    assert answer_f1("Red, house!", "red house") == 1.0
    assert answer_f1(None, "red") == 0.0
    assert answer_f1("«المپیک ریو»", "المپیک ریو") == 1.0
    rows = [row_of(spans=((0, 1, "red house"),), also=("house",)), row_of(), row_of()]
    got = tallies("extract", rows, ["house", None, "red"])
    assert got["exact_match"].value == pytest.approx(2 / 3)
    assert got["answerable_f1"].value == 1.0
    assert got["no_answer_accuracy"].value == 0.5
    assert (got["answerable_f1"].rows, got["no_answer_accuracy"].rows) == (1, 2)


def test_a_paired_interval_is_narrower_than_the_figures_own():
    draw = np.random.default_rng(0)
    one = (draw.random(400) < 0.7).astype(float)
    two = one.copy()
    two[:10] = 1.0
    new, old = (Tally(np.stack([hits, np.ones(400)], -1)[:, None]) for hits in (two, one))
    low, high = new.gain_interval(old)
    assert 0 <= low <= new.value - old.value <= high < 0.03
    assert old.interval()[0] < old.value < old.interval()[1]
