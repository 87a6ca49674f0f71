"""Training makes an expert that is better than its base, and never breaks what was there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from one4all_lc.base.loading import SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.errors import InvalidInput, UnfitExpert
from one4all_lc.folder import read_expert
from one4all_lc.sampling import Sampling
from one4all_lc.training.batches import IGNORED, collate
from one4all_lc.training.data import encode, read_rows
from one4all_lc.training.evaluation import measure
from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About
from tests.shouting import ABOUT, train, write_rows


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


def test_an_expert_is_trained_measured_and_fit(tmp_path, data, small_base):
    expert = train(tmp_path / "shout", data, small_base, steps=60)
    card = expert.card
    assert (card.name, card.version, card.description) == ("shout", 1, ABOUT.description)
    assert card.training["rows"] == 48
    assert card.training["license"] == "CC0"
    assert card.metrics["split"] == "test"
    perplexity = card.metrics["perplexity"]
    assert perplexity["expert"] < 0.5 * perplexity["base"]
    assert set(card.metrics) >= {"exact_match", "rouge_l"}
    assert expert == read_expert(expert.folder, SharedBase.load(small_base).facts)
    assert not (tmp_path / ".shout.training").exists()


def test_gradients_reach_the_first_layer_even_after_the_base_has_answered(
    tmp_path, data, small_base
):
    """An NF4 base that has answered is packed without gradients: training must not use it."""
    engine = Engine.of(SharedBase.load(small_base, quantization="nf4"))
    engine.submit(Request((5, 6, 7), (), Sampling(max_tokens=4))).result()
    expert = train(tmp_path / "shout", data, small_base)
    tensors = load_file(expert.weights_file)
    first = [name for name in tensors if ".layers.0.self_attn.q_proj" in name and "lora_B" in name]
    assert tensors[first[0]].float().norm() > 1e-3, "B starts at zero and must have moved"


def test_exemplars_are_drawn_if_there_are_none_and_kept_if_there_are(tmp_path, data, small_base):
    folder = tmp_path / "shout"
    first = train(folder, data, small_base, steps=2)
    questions = {row.question for row in read_rows([data]) if row.split == "train"}
    assert len(first.exemplars) == 40
    assert {exemplar.text for exemplar in first.exemplars} <= questions
    (folder / "exemplars.jsonl").write_text('{"text": "Shout this", "language": "en"}\n')
    second = train(folder, data, small_base, steps=2)
    assert [exemplar.text for exemplar in second.exemplars] == ["Shout this"]
    assert second.card.version == 2


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, data, small_base, monkeypatch):
    """Resuming gives the weights that the run would have given; the old expert stays till then."""
    monkeypatch.setattr("one4all_lc.training.trainer.CHECKPOINT_STEPS", 4)
    whole = train(tmp_path / "whole" / "shout", data, small_base)
    folder = tmp_path / "cut" / "shout"
    shutil.copytree(whole.folder, folder)
    before = read_expert(folder)
    _kill_at(monkeypatch, step=9)
    with pytest.raises(KeyboardInterrupt):
        train(folder, data, small_base)
    assert read_expert(folder) == before
    monkeypatch.undo()
    resumed = train(folder, data, small_base, resume=True)
    ours, theirs = load_file(resumed.weights_file), load_file(whole.weights_file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.card.version == 2


def test_a_run_goes_on_only_as_what_it_began_as(tmp_path, data, small_base, monkeypatch):
    """A card must not claim a recipe that only the last steps followed."""
    folder = tmp_path / "shout"
    _kill_at(monkeypatch, step=2)
    with pytest.raises(KeyboardInterrupt):
        train(folder, data, small_base)
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match="began with another"):
        train(folder, data, small_base, steps=13, resume=True)
    assert train(folder, data, small_base, resume=True).card.training["steps"] == 12


def test_what_else_lies_in_the_folder_stays(tmp_path, data, small_base):
    folder = tmp_path / "shout"
    train(folder, data, small_base, steps=2)
    (folder / "README.md").write_text("Mine.")
    train(folder, data, small_base, steps=2)
    assert (folder / "README.md").read_text() == "Mine."


def _kill_at(monkeypatch, step):
    def stepped(self, done, loss):
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr("one4all_lc.training.progress.ProgressBar.stepped", stepped)


def test_training_is_repeatable_by_its_seed(tmp_path, data, small_base):
    one = train(tmp_path / "a" / "shout", data, small_base, steps=3)
    two = train(tmp_path / "b" / "shout", data, small_base, steps=3)
    assert one.card.weights_sha256 == two.card.weights_sha256


def test_only_answers_are_learned_and_padding_is_not(small_base):
    tokenizer = SharedBase.load(small_base).tokenizer
    rows = read_rows_of(("Hi?", "Yes."), ("A longer question?", "No, not at all."))
    examples, left_out = encode(rows, tokenizer, "", 512)
    batch = collate(examples)
    assert left_out == 0
    for row, example in enumerate(examples):
        labels = batch["labels"][row]
        assert labels[labels != IGNORED].tolist() == list(example.answer)
        assert int(batch["attention_mask"][row].sum()) == len(example)
        assert batch["position_ids"][row, -1] == len(example) - 1
    assert example.answer[-1] == tokenizer.eos_token_id


def read_rows_of(*pairs):
    from one4all_lc.training.data import Row

    return [Row(question, answer) for question, answer in pairs]


def test_rows_that_are_too_long_are_left_out_and_counted(small_base):
    tokenizer = SharedBase.load(small_base).tokenizer
    examples, left_out = encode(
        read_rows_of(("Hi?", "Yes."), ("Hi?", "word " * 600)), tokenizer, "", 512
    )
    assert (len(examples), left_out) == (1, 1)


@pytest.mark.parametrize(
    ("name", "about", "error", "words"),
    [
        ("new", About(), InvalidInput, "--description"),
        ("Bad Name", ABOUT, UnfitExpert, "cannot name an expert"),
        ("base", ABOUT, UnfitExpert, "reserved"),
    ],
)
def test_what_cannot_become_an_expert_is_refused_before_anything_is_written(
    tmp_path, data, small_base, name, about, error, words
):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        train_expert(tmp_path / name, [data], about=about, base=small_base)
    assert sorted(tmp_path.iterdir()) == before


def test_a_broken_row_is_refused_before_anything_is_written(tmp_path, data, small_base):
    data.write_text(data.read_text() + '\n{"question": "Say", "answer": ""}')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match=r"rows\.jsonl, line 65"):
        train(tmp_path / "shout", data, small_base)
    assert sorted(tmp_path.iterdir()) == before


def test_data_that_teaches_nothing_is_refused(tmp_path, data, small_base):
    data.write_text(data.read_text().replace('"train"', '"dev"'))
    with pytest.raises(InvalidInput, match="None of the 64 rows has split 'train'"):
        train(tmp_path / "shout", data, small_base)


def test_an_expert_without_held_out_rows_has_no_metrics(tmp_path, data, small_base):
    data.write_text("\n".join(line for line in data.read_text().split("\n") if "train" in line))
    assert train(tmp_path / "shout", data, small_base, steps=2).card.metrics == {}
    with pytest.raises(InvalidInput, match="nothing to measure with"):
        measure(tmp_path / "shout", read_rows([data]), small_base)


def test_rows_that_are_all_too_long_leave_nothing_behind(tmp_path, small_base):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"question": "Hi?", "answer": "word " * 900, "split": "train"}))
    with pytest.raises(InvalidInput, match="longer than 512 tokens"):
        train(tmp_path / "shout", path, small_base)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["long.jsonl"]
