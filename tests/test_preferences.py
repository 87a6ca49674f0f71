"""Preferences: an expert learns which answers people like better, and stays near what it was."""

import csv
import json
import math

import pytest

from one4all_lc.base.loading import SharedBase
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import read_expert
from one4all_lc.training.preferences import PreferenceRecipe, prefer, read_pairs
from tests.shouting import WORDS, train, write_rows

RECIPE = PreferenceRecipe(learning_rate=2e-2, passes=4, batch_pairs=8)


def pairs():
    return [
        {
            "question": f"Say {word} {n}",
            "chosen": f"{word.upper()} {n}!",
            "rejected": f"{word} {n}?",
            "split": "test" if n == 5 else "train",
        }
        for word in WORDS
        for n in range(6)
    ]


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs())))
    return path


def test_an_expert_prefers_what_people_prefer_and_begins_as_it_was(
    tmp_path, data, small_base, pairs_file
):
    """The first loss is log 2 only if the reference is the expert itself, not the bare base."""
    folder = tmp_path / "shout"
    old = train(folder, data, small_base, steps=4)
    new = prefer(folder, [pairs_file], data=[data], recipe=RECIPE)
    facts = new.card.training["preferences"]
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert facts["final_loss"] < 0.9 * facts["first_loss"]
    assert (facts["pairs"], facts["steps"], facts["held_out"]["pairs"]) == (40, 20, 8)
    assert facts["held_out"]["before"] <= facts["held_out"]["after"]
    assert new.card.version == old.card.version + 1
    assert new.card.weights_sha256 != old.card.weights_sha256
    assert new.card.training["recipe"] == old.card.training["recipe"]
    assert new.card.metrics["perplexity"]["rows"] == 16
    assert new == read_expert(folder, SharedBase.load(small_base).facts)
    assert not (tmp_path / ".shout.training").exists()


def test_csv_is_read_as_jsonl_is(tmp_path, pairs_file):
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(pairs()[0]))
        writer.writeheader()
        writer.writerows(pairs())
    assert read_pairs([path]) == read_pairs([pairs_file])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": ""}, r"line 49 has no text under 'chosen'"),
        ({"rejected": None}, r"line 49 has no text under 'rejected'"),
        ({"rejected": "A!"}, r"line 49 prefers an answer to itself"),
        ({"split": "mine"}, r"line 49 has split 'mine'"),
    ],
)
def test_bad_pairs_are_named(pairs_file, change, words):
    line = {"question": "Q?", "chosen": "A!", "rejected": "a", **change}
    pairs_file.write_text(f"{pairs_file.read_text()}\n{json.dumps(line)}")
    with pytest.raises(InvalidInput, match=words):
        read_pairs([pairs_file])


def test_pairs_that_teach_nothing(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pairs()[5]))
    with pytest.raises(InvalidInput, match="None of the 1 pairs has split 'train'"):
        read_pairs([path])


def test_without_trl_one_sentence_says_what_to_install(tmp_path, monkeypatch, pairs_file):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(InvalidInput, match=r"one4all_lc\[preferences\]"):
        prefer(tmp_path / "shout", [pairs_file])
