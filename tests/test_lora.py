"""Many adapters in one forward give what PEFT gives for each alone; else answers are wrong."""

import pytest
import torch

from one4all_lc.base.linears import Linears
from one4all_lc.base.planning import Planner
from one4all_lc.base.residency import Residency
from one4all_lc.folder import read_expert

RANKS = (4, 8, 16)
PROMPT = "Which phone has the best camera, and what do its owners complain about?"


def logits_of(base, adapters, rows, ids):
    """Logits of our layers, shape (rows, length, vocabulary), for one mixture a row."""
    with torch.inference_mode(), planned(base, adapters, rows, ids.shape[1]):
        return base.model(ids.expand(len(rows), -1)).logits.float()


def planned(base, adapters, rows, length):
    """Apply one mixture a row to every forward inside the block."""
    linears = Linears.of(base)
    known = {adapter.identity: adapter for adapter in adapters}
    return linears.cell.using(
        Planner.of(linears).plan([(length, mixture) for mixture in rows], known)
    )


def peft_logits(folder, ids, **load):
    """Logits of PEFT's own forward on a fresh base, shape (1, length, vocabulary)."""
    from peft import PeftModel

    from one4all_lc.base.loading import SharedBase

    fresh = SharedBase.load(shared=False, **load)
    model = PeftModel.from_pretrained(fresh.model, folder).eval()
    with torch.inference_mode():
        return model(ids).logits.float()


@pytest.fixture
def ids(base_nf4):
    return torch.tensor([base_nf4.tokenizer.encode(PROMPT)])


def loaded(base, folders):
    residency = Residency(base.device, base.dtype)
    return [residency.load(read_expert(folder, base.facts)) for folder in folders]


@pytest.mark.parametrize(
    ("quantization", "dtype", "strength"),
    [("none", torch.float32, 0.01), ("nf4", torch.bfloat16, 0.05)],
)
def test_adapters_of_three_ranks_in_one_batch_equal_peft(
    quantization, dtype, strength, make_expert, ids
):
    from one4all_lc.base.loading import SharedBase

    load = {"quantization": quantization, "dtype": dtype}
    base = SharedBase.load(**load)
    folders = [
        make_expert(f"r{rank}", base.facts, rank=rank, seed=rank, strength=strength)
        for rank in RANKS
    ]
    adapters = loaded(base, folders)
    rows = [((adapter.identity, 1.0),) for adapter in adapters]
    mixed = logits_of(base, adapters, [(), *rows, ()], ids)
    bare = logits_of(base, adapters, [()], ids)[0]
    for row, folder in enumerate(folders, 1):
        expected = peft_logits(folder, ids, **load)[0]
        error = (mixed[row] - expected).abs().max()
        assert (expected - bare).abs().max() > 0.5, "the adapter must matter for the test to count"
        if quantization == "none":
            assert error < 1e-3
        else:  # in bfloat16 each of the two is some 2.5e-2 off exact arithmetic: see `quantization`
            assert (mixed[row] - expected).norm() / expected.norm() < 3e-2
            assert (bare - expected).norm() / expected.norm() > 0.1
    for row in (0, -1):
        assert (mixed[row] - bare).abs().max() < 1e-3


@pytest.mark.parametrize(("fixture", "tolerance"), [("base_fp32", 1e-4), ("base_nf4", 2e-2)])
def test_a_row_does_not_depend_on_who_else_is_in_the_batch(
    fixture, tolerance, make_expert, ids, request
):
    base = request.getfixturevalue(fixture)
    folders = [make_expert(f"r{rank}", base.facts, rank=rank, seed=rank) for rank in RANKS]
    adapters = loaded(base, folders)
    first, second, third = (((adapter.identity, 1.0),) for adapter in adapters)
    together = logits_of(base, adapters, [first, (), second, third, first], ids)
    alone = logits_of(base, adapters, [first], ids)[0]
    for row in (0, 4):
        assert (together[row] - alone).norm() / alone.norm() < tolerance
    assert (together[2] - alone).norm() / alone.norm() > 0.03, "other adapters answer otherwise"


def test_a_mixture_adds_the_weighted_deltas(base_fp32, make_expert):
    folders = [make_expert(f"e{i}", base_fp32.facts, rank=4 + i, seed=i) for i in range(2)]
    one, two = loaded(base_fp32, folders)
    Linears.of(base_fp32)
    name = "model.layers.0.self_attn.o_proj"  # alone in its group: the others compute for siblings
    layer = base_fp32.model.get_submodule(name)
    x = torch.randn(1, 3, base_fp32.facts.linears[name][1])

    def output(mixture):
        with torch.inference_mode(), planned(base_fp32, [one, two], [mixture], 3):
            return layer(x)

    bare = output(())
    deltas = [output(((adapter.identity, 1.0),)) - bare for adapter in (one, two)]
    mixed = output(((one.identity, 0.7), (two.identity, 0.3)))
    assert torch.allclose(mixed, bare + 0.7 * deltas[0] + 0.3 * deltas[1], atol=1e-4)


def test_a_plan_never_outlives_its_forward(base_fp32, make_expert):
    """An exception in one request must not leave its adapter in the next one's answer."""
    (adapter,) = loaded(base_fp32, [make_expert("e", base_fp32.facts)])
    cell = Linears.of(base_fp32).cell
    with (
        pytest.raises(ZeroDivisionError),
        planned(base_fp32, [adapter], [((adapter.identity, 1.0),)], 1),
    ):
        assert 1 / len(cell.plan.segments) / 0, "reached with a plan"
    assert not cell.plan.segments


def test_an_adapter_on_some_layers_leaves_the_others_alone(base_fp32, make_expert, ids):
    """Adapters on different layers share a batch: each layer uses only those that it has."""
    names = list(base_fp32.facts.linears)
    early = make_expert("early", base_fp32.facts, modules=names[:7], seed=1, strength=0.2)
    late = make_expert("late", base_fp32.facts, modules=names[-3:], seed=2, strength=0.2)
    adapters = loaded(base_fp32, [early, late])
    rows = [((adapter.identity, 1.0),) for adapter in adapters]
    together = logits_of(base_fp32, adapters, [rows[1], rows[0]], ids)
    for row, folder in ((1, early), (0, late)):
        expected = peft_logits(folder, ids, quantization="none", dtype=torch.float32)[0]
        assert (together[row] - expected).abs().max() < 1e-3
