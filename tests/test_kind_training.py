"""Experts that decide are trained, measured as they are served, and published like all others."""

import json
import shutil
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from one4all_lc.base.loading import SharedBase
from one4all_lc.card import ExpertCard
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.errors import InvalidInput, WorseExpert
from one4all_lc.experts.text import text_expert
from one4all_lc.folder import read_expert
from one4all_lc.library import Library
from one4all_lc.training.kinds.rows import read_kind_rows
from one4all_lc.training.proving import Publication, publish_if_not_worse
from one4all_lc.training.qlora import train_expert
from one4all_lc.training.recipe import About, Recipe
from tests.test_encoder_architectures import write_checkpoint

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random BERT that knows letters."""
    return write_checkpoint("bert", tmp_path_factory.mktemp("bert"))


def splits(count):
    return ["train"] * (count - 40) + ["dev"] * 20 + ["test"] * 20


def rows_of(kind, count=160):
    """Rows that a tiny encoder can learn: what matters is which letters there are."""
    for i, split in enumerate(splits(count)):
        x, y, z = "abcdefghij"[i % 10], "klmnopqrst"[(i * 7 + i // 10) % 10], "uvwxyz"[i // 3 % 6]
        text, label = f"{x} {y} {z}", "yes" if i % 2 else "no"
        if kind == "classify":
            yield {"text": text, "label": label, "split": split}
        elif kind == "pair":
            yield {"premise": text, "hypothesis": y, "label": label, "split": split}
        elif kind == "tag":
            entity = {"start": 0, "end": 1, "label": label.upper()}
            yield {"text": text, "entities": [entity], "split": split}
        else:
            answer = {"answer": None} if x in "abc" else {"answer": z, "answer_start": 4}
            yield {"question": x, "context": text, "split": split, **answer}


def write(path, kind, count=160):
    path.write_text("\n".join(json.dumps(row) for row in rows_of(kind, count)))
    return path


def train(folder, data, kind, base, **options):
    recipe = {"steps": 60, "batch_tokens": 256, "learning_rate": 1e-2, "max_tokens": 32, "rank": 4}
    how = {"quantization": "none"} | options.pop("recipe", {})
    return train_expert(
        folder,
        [data],
        about=About(description="Knows letters.", kind=kind, metric=options.pop("metric", None)),
        recipe=Recipe(**(recipe | how)),
        base=base,
        **options,
    )


METRIC = {"classify": "accuracy", "pair": "accuracy", "tag": "entity_f1", "extract": "span_f1"}


@pytest.mark.parametrize("kind", METRIC)
def test_each_kind_is_trained_measured_and_served(tmp_path, base, kind):
    data = write(tmp_path / "rows.jsonl", kind)
    expert = train(tmp_path / "letters", data, kind, base)
    card = expert.card
    assert (card.kind, card.metric, card.version) == (kind, METRIC[kind], 1)
    assert card.training["rows"] == 120
    assert card.training["final_loss"] < 0.6 * card.training["first_loss"]
    figures = card.metrics[METRIC[kind]]
    assert card.metrics["split"] == "test"
    assert figures["expert"] > figures["base"] + 0.1
    assert figures["intervals"]["gain"][0] > 0
    assert figures["rows"] == 20
    base_ = SharedBase.load(base)
    assert expert == read_expert(expert.folder, base_.facts)
    library = Library.of([expert], base_.facts)
    served = text_expert(engine=EncoderEngine.of(base_), library=library, model="letters")
    row = next(row for row in rows_of(kind) if row["split"] == "test")
    assert served.invoke(row.get("text", row)).said()
    assert ("threshold" in card.head) == (kind != "tag")
    assert not (tmp_path / ".letters.training").exists()


def test_several_labels_at_once(tmp_path, base):
    path = tmp_path / "rows.jsonl"
    pairs = [(x, y) for x in LETTERS for y in LETTERS]
    Random(0).shuffle(pairs)
    rows = [
        {"text": f"{x} {y}", "labels": sorted({x, y} & set("abc")), "split": split}
        for (x, y), split in zip(pairs, splits(100), strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    card = train(tmp_path / "letters", path, "classify", base, metric="macro_f1").card
    assert card.head["several"]
    assert card.labels == ("a", "b", "c")
    assert card.metrics["macro_f1"]["expert"] > 0.7


def test_qlora_leaves_the_base_quantized_and_reaches_the_first_layer(tmp_path, base):
    data = write(tmp_path / "rows.jsonl", "classify")
    options = {"quantization": "nf4", "steps": 4}
    expert = train(tmp_path / "letters", data, "classify", base, recipe=options)
    assert expert.card.training["base_quantization"] == "nf4"
    tensors = load_file(expert.weights_file)
    (first,) = (name for name in tensors if "layer.0.attention.self.query.lora_B" in name)
    assert tensors[first].float().norm() > 1e-3, "B starts at zero and must have moved"


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, base, monkeypatch):
    monkeypatch.setattr("one4all_lc.training.trainer.CHECKPOINT_STEPS", 4)
    data = write(tmp_path / "rows.jsonl", "classify")
    short = {"steps": 12}
    whole = train(tmp_path / "whole" / "letters", data, "classify", base, recipe=short)

    def stepped(self, done, loss):
        if done == 9:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("one4all_lc.training.progress.ProgressBar.stepped", stepped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut" / "letters", data, "classify", base, recipe=short)
    resumed = train(tmp_path / "cut" / "letters", data, "classify", base, recipe=short, resume=True)
    assert resumed.identity == whole.identity, "adapter, head and threshold are the same"


def test_what_is_worse_is_not_published(tmp_path, base):
    data = write(tmp_path / "rows.jsonl", "classify")
    folder = tmp_path / "letters"
    good = train(folder, data, "classify", base)
    one_step = {"steps": 1, "learning_rate": 1e-6}
    with pytest.raises(WorseExpert, match="accuracy"):
        train(folder, data, "classify", base, recipe=one_step, publication=Publication(gate=True))
    assert read_expert(folder).identity == good.identity
    rows = read_kind_rows("classify", [data])
    again = shutil.copytree(folder, tmp_path / "made" / "letters")
    _, verdict = publish_if_not_worse(again, folder, rows)
    assert (verdict.gain, verdict.worse, verdict.rows) == (0.0, False, 20)


def test_a_long_text_is_learned_in_windows(tmp_path, base):
    """Lost: every answer that stands behind the first tokens."""
    rows = []
    for i in range(42):
        answer, before = "xyz"[i % 3], " ".join(LETTERS[i % 10] * (30 + i % 7))
        row = {"question": "q", "context": f"{before} {answer}", "answer": answer}
        rows.append(row | {"split": "train" if i < 36 else "test"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    expert = train(tmp_path / "letters", path, "extract", base, recipe={"max_tokens": 24})
    assert expert.card.head["max_tokens"] == 24
    assert expert.card.metrics["exact_match"]["expert"] > 0.8


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("classify", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "label 'x'"),
        ("tag", [{"text": t, "entities": []} for t in "ab"], "nothing to learn"),
        ("classify", [{"text": "a", "label": "x"}, {"text": ""}], "line 2"),
    ],
)
def test_data_that_teaches_nothing_is_refused(tmp_path, base, kind, rows, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InvalidInput, match=words):
        train(tmp_path / "letters", path, kind, base)
    assert [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_cannot_be_trained_is_said(tmp_path, base, small_base):
    data = write(tmp_path / "rows.jsonl", "classify")
    with pytest.raises(InvalidInput, match="is a decoder"):
        train(tmp_path / "letters", data, "classify", str(small_base))
    with pytest.raises(InvalidInput, match="can be one of"):
        train(tmp_path / "letters", data, "poem", base)
    with pytest.raises(InvalidInput, match=r"use one of \['accuracy', 'macro_f1'\]"):
        train(tmp_path / "letters", data, "classify", base, metric="rouge_l")
    train(tmp_path / "letters", data, "classify", base, recipe={"steps": 1})
    with pytest.raises(InvalidInput, match="is a classify expert, not of kind 'tag'"):
        train(tmp_path / "letters", data, "tag", base)


def test_the_card_is_enough_to_do_it_again(tmp_path, base):
    from one4all_lc.training.like import Like, train_like

    data = write(tmp_path / "rows.jsonl", "classify")
    first = train(tmp_path / "letters", data, "classify", base, recipe={"steps": 3})
    again = train_like(
        Like.read(first.folder), base, folder=tmp_path / "b" / "letters", data=[data]
    )
    assert again.identity == first.identity
    assert ExpertCard.read(again.folder).training["like"]["same_data"]


def test_lessons_are_cut_as_the_expert_reads(base):
    """Lost: training on other tokens than are served."""
    from one4all_lc.experts.text.reading import Tokenizing
    from one4all_lc.training.kinds.examples import Labelling, encoder_of
    from one4all_lc.training.kinds.objective import Deciding
    from one4all_lc.training.kinds.rows import KindRow

    shared = SharedBase.load(base)
    labelling = Labelling("tag", ("O", "B-X", "I-X"))
    encode = encoder_of(labelling, Tokenizing.of(shared), 32)
    row = KindRow("q", "a", texts=("a b, c d",), spans=((2, 6, "X"),))
    (lesson,) = encode(row)
    assert lesson.wanted == (-100, 0, 1, 2, 2, 0, -100)
    assert lesson.learned == 5
    batch = Deciding(labelling, shared).lay([lesson, *encode(KindRow("q", "a", texts=("a",)))])
    assert batch["attention_mask"].sum(1).tolist() == [7, 3]
    assert torch.equal(batch["labels"] >= 0, batch["labels"] != -100)


def test_train_eval_and_publish_on_the_command_line(tmp_path, base, run):
    data = write(tmp_path / "letters.jsonl", "classify")
    options = ("--steps", 40, "--batch-tokens", 256, "--learning-rate", 1e-2, "--max-tokens", 32)
    code, out, err = run(
        *("train", tmp_path / "experts" / "letters", "--kind", "classify", "--data", data),
        *("--base", base, "--description", "Knows letters.", "--json", *options),
    )
    assert code == 0, err
    card = json.loads(out)
    assert card["kind"] == "classify"
    assert card["training"]["base_quantization"] == "nf4", "QLoRA is the default"
    code, out, err = run(
        "eval", "--adapters", tmp_path / "experts", "--data", data, "--json", "--base", base
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["letters"]["accuracy"] == card["metrics"]["accuracy"]
    made = shutil.copytree(tmp_path / "experts" / "letters", tmp_path / "made" / "letters")
    code, out, err = run(
        "publish", made, "--adapters", tmp_path / "experts", "--data", data, "--limit", 8, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["verdict"]["rows"] == 8
    assert json.loads(out)["version"] == 2
    code, _, err = run(
        *("train", tmp_path / "x", "--kind", "tag", "--data", data, "--description", "x"),
        *("--system-prompt", "Be brief."),
    )
    assert code == 2
    assert "--system-prompt" in err
    code, out, _ = run("train", "--check", "--kind", "pair", "--data", data, "--json")
    assert code == 1
    assert "no text under 'premise'" in json.loads(out)["findings"][0]["message"]
