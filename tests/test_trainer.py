"""The training loop: nothing that happens to a run may change what it learns."""

import signal
import subprocess
import sys
from ast import literal_eval
from random import Random

import pytest
import torch

from one4all_lc.base.loading import SharedBase
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import read_expert
from one4all_lc.training import trainer
from one4all_lc.training.batches import answer_loss, collate
from one4all_lc.training.checkpoint import Standing, read_checkpoint, write_checkpoint
from one4all_lc.training.data import Row, encode
from one4all_lc.training.qlora import with_adapter
from one4all_lc.training.recipe import Recipe
from one4all_lc.training.trainer import Training, dev_loss
from tests.conftest import ROOT
from tests.killed import STEPS
from tests.shouting import WORDS, write_rows

CPU = torch.device("cpu")


class Watched:
    """Keeps what a training tells."""

    def __init__(self):
        self.losses, self.notes, self.began = [], [], None

    def begin(self, step, steps):
        self.began = (step, steps)

    def stepped(self, step, loss):
        self.losses.append(loss)

    def note(self, text):
        self.notes.append(text)


def rows(tokenizer, numbers=range(6)):
    said = [Row(f"Say {word} {n}", f"{word.upper()} {n}!") for word in WORDS for n in numbers]
    return encode(said, tokenizer, "Shout.", 512)[0]


@pytest.fixture
def train(small_base, tmp_path):
    """Return a function that trains a new adapter: (model, standing, watched)."""

    def run(dev=(), name="one", **options):
        shared = SharedBase.load(small_base, quantization="nf4", shared=False)
        recipe = Recipe(**({"steps": 8, "batch_tokens": 240, "learning_rate": 1e-2} | options))
        examples = rows(shared.tokenizer)
        recipe = recipe.for_data([len(example) for example in examples])
        model, watched = with_adapter(shared, recipe), Watched()
        held_out = rows(shared.tokenizer, dev) if dev else []
        checkpoint = tmp_path / f"{name}.safetensors"
        standing = Training(model, examples, held_out, recipe, checkpoint, watched).run()
        return model, standing, watched

    return run


def first_gradient(model):
    """The gradient at the first layer's B, of a model whose B is zero."""
    named = dict(model.named_parameters())
    name = next(name for name in named if ".layers.0.self_attn.q_proj.lora_B" in name)
    return named[name].grad


def test_gradients_are_the_same_after_dev_rows_were_measured(small_base):
    """Lost: everything below the last layers: bitsandbytes packs NF4 layers that only measure."""
    gradients = []
    for measured_first in (False, True):
        shared = SharedBase.load(small_base, quantization="nf4", shared=False)
        examples = rows(shared.tokenizer)[:8]
        model = with_adapter(shared, Recipe(rank=4, alpha=8))
        trainer.stay_differentiable(model)
        if measured_first:
            assert dev_loss(model, [collate(examples)], CPU) > 0
        answer_loss(model, collate(examples)).backward()
        gradients.append(first_gradient(model).clone())
        layers = [item for item in model.modules() if type(item).__name__ == "Linear4bit"]
        states = [getattr(item.weight, "quant_state", None) for item in layers]
        assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_dev_rows_do_not_change_what_is_learned(train):
    _, _, one = train(name="alone")
    _, _, two = train(dev=range(6, 8), name="measured", patience=0)
    assert one.losses == two.losses
    assert one.began == (0, 8)


def test_a_step_is_the_same_in_one_forward_or_in_many(train):
    """Lost: recipes that mean the same on a small machine and on a large one."""
    _, whole, _ = train(name="whole", micro_tokens=1000)
    _, parts, _ = train(name="parts", micro_tokens=60)
    assert parts.losses == pytest.approx(whole.losses, rel=0.02)
    assert parts.tokens == whole.tokens


def test_packed_rows_teach_the_same(train):
    _, padded, _ = train(name="padded")
    _, packed, _ = train(name="packed", packing=True)
    assert packed.losses == pytest.approx(padded.losses, rel=0.02)
    assert packed.padding == 0


def test_training_ends_when_dev_rows_get_worse_and_the_best_adapter_is_kept(train, monkeypatch):
    """Lost: an expert that knows its rows by heart and nothing else."""
    told = iter([2.0, 1.0, 1.5, 1.6, 1.7, 1.8])
    kept = []

    def dev_losses(model, batches, device, loss):
        named = {name: item for name, item in model.named_parameters() if item.requires_grad}
        kept.append({name: item.detach().clone() for name, item in named.items()})
        return next(told)

    monkeypatch.setattr(trainer, "dev_loss", dev_losses)
    model, standing, watched = train(dev=range(6, 8), steps=60, patience=3)
    assert [loss for _, loss in standing.dev_losses] == [2.0, 1.0, 1.5, 1.6, 1.7]
    assert (standing.best_step, standing.step) == (10, 25)
    assert "lowest after step 10" in watched.notes[-1]
    for name, item in model.named_parameters():
        if item.requires_grad:
            assert torch.equal(item, kept[1][name])


def test_a_loss_that_is_no_number_ends_the_training(train, monkeypatch):
    monkeypatch.setattr(
        trainer, "answer_loss", lambda model, batch: answer_loss(model, batch) * float("nan")
    )
    with pytest.raises(InvalidInput, match=r"The loss is nan at step 1: .* under 0\.01"):
        train()


def test_a_run_killed_at_five_random_moments_gives_the_same_weights(small_base, tmp_path):
    """Lost: a night's training to a power cut, or weights that nobody can make again.

    Real processes, killed with signal 9; each goes on from the checkpoint of the one before.
    """
    moments = [str(step) for step in sorted(Random(0).sample(range(1, STEPS), 5))]
    data = write_rows(tmp_path / "rows.jsonl", ("train", "dev"))
    command = [sys.executable, "-m", "tests.killed", small_base, data, tmp_path, *moments]
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=500, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert literal_eval(ended.stdout.splitlines()[-1]) == [0, *[-signal.SIGKILL] * 5, 0]
    whole, cut = (read_expert(tmp_path / name / "shout") for name in ("whole", "cut"))
    assert cut.card.weights_sha256 == whole.card.weights_sha256
    for fact in ("dev_losses", "final_loss", "best_step", "tokens"):
        assert cut.card.training[fact] == whole.card.training[fact]
    assert not (tmp_path / "cut" / ".shout.training").exists()


def test_a_checkpoint_is_the_old_one_until_it_is_whole(tmp_path, monkeypatch):
    """Lost: the run, to a kill while its checkpoint is written."""
    from pathlib import Path

    path, tensors = tmp_path / "checkpoint.safetensors", {"a": torch.arange(6.0)}
    old = Standing(step=3, losses=[0.1, 1 / 3, 2.5], dev_losses=[(2, 0.7)], best_step=2)
    write_checkpoint(path, tensors, old)

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, {"a": torch.zeros(6)}, Standing(step=4))
    read, standing = read_checkpoint(path)
    assert standing == old
    assert torch.equal(read["a"], tensors["a"])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidInput, match="is not a whole checkpoint"):
        read_checkpoint(path)


def test_defaults_follow_the_size_of_the_data():
    """Lost: a few rows learned by heart, or hours over many."""
    small, middle, large = (Recipe().for_data([80] * count) for count in (100, 2000, 100_000))
    assert small.rank < middle.rank < large.rank
    assert small.learning_rate < middle.learning_rate < large.learning_rate
    assert small.steps == 35
    assert large.steps == 600
    assert Recipe(rank=2, steps=5, learning_rate=1.0).for_data([80]).alpha == 4


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"steps": 0}, {"learning_rate": -1.0}, {"quantization": "int8"}]
)
def test_recipes_that_cannot_be(options):
    with pytest.raises(InvalidInput):
        Recipe(**options)


def test_targets_that_the_base_has_not_are_named(small_base):
    shared = SharedBase.load(small_base, quantization="none", shared=False)
    recipe = Recipe(rank=2, alpha=4, targets=("query",))
    with pytest.raises(InvalidInput, match=r"no layers \['query'\].*'q_proj'"):
        with_adapter(shared, recipe)
    model = with_adapter(shared, Recipe(rank=2, alpha=4, targets=("q_proj",)))
    learned = [name for name, item in model.named_parameters() if item.requires_grad]
    assert learned
    assert all("q_proj" in name for name in learned)
