"""Rows in steps and forwards: what is learned may not depend on how rows lie."""

from itertools import islice

import pytest
import torch

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.quantized import stay_differentiable
from one4all_lc.training.batches import IGNORED, answer_loss, collate, pack, steps_of
from one4all_lc.training.data import Example
from one4all_lc.training.recipe import Recipe
from one4all_lc.training.trainer import keeps_apart
from tests.bases import GEMMA3, write_base


def some(count: int = 100) -> list[Example]:
    """Rows of 7 to 47 tokens, no two the same."""
    return [
        Example(tuple(range(5 + n, 9 + n + 3 * n % 30)), tuple(range(n, n + 3 + n % 11)))
        for n in range(count)
    ]


def flat(steps):
    return [[example for rows in step.micro for example in rows] for step in steps]


def test_steps_have_their_tokens_and_every_row_its_turn():
    """Lost: steps of one row where rows are long, memory where they are many, or rows left out."""
    rows, recipe = some(), Recipe(batch_tokens=300, micro_tokens=90)
    steps = list(islice(steps_of(rows, recipe), 200))
    for step in steps:
        assert step.tokens + step.padding <= 300 + 47
        for part in step.micro:
            assert len(part) == 1 or len(part) * max(map(len, part)) <= 90
    counts = [sum(row == example for step in flat(steps) for example in step) for row in rows]
    passes = sum(map(len, flat(steps))) / len(rows)
    assert passes > 20
    # The last pool is cut off in the midst of it: it holds less than four passes.
    assert min(counts) >= passes - 4
    assert max(counts) <= passes + 4


def test_like_lengths_lie_together():
    """Lost: a third of the arithmetic, to padding; without sorting it is 35 %."""
    steps = list(islice(steps_of(some(), Recipe(batch_tokens=300)), 64))
    tokens = sum(step.tokens for step in steps)
    assert sum(step.padding for step in steps) / tokens < 0.1


def test_the_order_is_the_seeds_alone():
    one, two, other = (
        flat(islice(steps_of(some(), Recipe(batch_tokens=300, seed=seed)), 40))
        for seed in (0, 0, 1)
    )
    assert one == two != other


def test_a_row_longer_than_a_step_is_a_step():
    step = next(steps_of([Example(tuple(range(90)), (1,))], Recipe(batch_tokens=20)))
    assert step.tokens == 91


def test_packed_rows_know_their_places():
    batch = pack([Example((5, 6), (7,)), Example((8,), (9, 10))])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, IGNORED, 9, 10]]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request, tmp_path_factory):
    settings = GEMMA3 if request.param == "gemma3_text" else {}
    folder = write_base(tmp_path_factory.mktemp(request.param), request.param, **settings)
    base = SharedBase.load(folder, quantization="none", dtype=torch.float32, shared=False)
    stay_differentiable(base.model)
    return base.model


def test_the_loss_is_the_same_alone_padded_and_packed(model):
    """Lost: answers that see their neighbours' answers in training, and never will in use."""
    rows = some(6)
    with torch.no_grad():
        alone = sum(float(answer_loss(model, collate([row]))) for row in rows)
        together, packed = (float(answer_loss(model, lay(rows))) for lay in (collate, pack))
        first = model(input_ids=collate(rows[:1])["input_ids"], labels=collate(rows[:1])["labels"])
    assert together == pytest.approx(alone, rel=1e-5)
    assert packed == pytest.approx(alone, rel=1e-5)
    own = float(answer_loss(model, collate(rows[:1]))) / len(rows[0].answer)
    assert float(first.loss) == pytest.approx(own, rel=1e-5), "transformers' own loss"
    assert keeps_apart(model, torch.device("cpu"))


def test_a_base_that_mixes_packed_rows_is_found_out(model, monkeypatch):
    """Lost: the same, with bases whose attention does not look at positions."""
    forward = type(model).forward

    def blind(self, *arguments, position_ids=None, **options):
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", blind)
    assert not keeps_apart(model, torch.device("cpu"))
