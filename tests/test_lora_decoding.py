"""What adapters add while decoding: exact to rounding, and the same beside any others."""

import pytest
import torch

from one4all_lc.base.linears import Linears
from one4all_lc.base.lora import Adapter
from one4all_lc.base.packing import Packer, measured_overhead
from one4all_lc.base.planning import Planner
from one4all_lc.base.residency import Residency
from one4all_lc.base.tables import Table, Tables, Target
from one4all_lc.library import Library
from tests.conftest import ADAPTERS

ROWS = 8


@pytest.fixture(scope="module")
def linears(base_nf4):
    return Linears.of(base_nf4)


@pytest.fixture(scope="module")
def adapters(base_nf4, experts):
    """Shipped adapters first, then random ones of ranks that kernels do not like."""
    residency = Residency(base_nf4.device, base_nf4.dtype)
    return [residency.load(item) for item in [*Library(ADAPTERS, base_nf4.facts), *experts]]


@pytest.fixture(params=[Tables, Packer])
def planner(request, linears):
    """Rows' own factors by our kernel, and all adapters packed as where that does not run."""
    groups = linears.groups
    return Planner(request.param(groups))


def inputs(group):
    generator = torch.Generator().manual_seed(group.in_features)
    return torch.randn(ROWS, group.in_features, generator=generator).bfloat16()


def deltas(planner, linears, adapters, rows):
    """What is added to each decoding row in every group of layers."""
    known = {adapter.identity: adapter for adapter in adapters}
    plan = planner.plan([(1, row) for row in rows], known, len(rows))
    out = []
    with torch.inference_mode():
        for group in linears.groups:
            y = torch.zeros(ROWS, sum(group.widths), dtype=torch.bfloat16)
            plan.add(group.names[0], inputs(group), y)
            out.append(y.float())
    return out


def exact(group, adapter):
    x, parts = inputs(group).float(), []
    for name, width in zip(group.names, group.widths, strict=True):
        a, b = adapter.factors.get(name, (x.new_zeros(1, x.shape[1]), x.new_zeros(width, 1)))
        parts.append(x @ a.float().T @ b.float().T)
    return torch.cat(parts, -1)


def error(found, expected):
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))


def only(adapter):
    return ((adapter.identity, 1.0),)


def test_what_an_adapter_adds_is_exact_to_rounding(planner, linears, adapters):
    for adapter in adapters:
        found = deltas(planner, linears, [adapter], [only(adapter)] * ROWS)
        expected = [exact(group, adapter) for group in linears.groups]
        worst = max(map(error, found, expected))
        assert worst < 0.005, f"{worst:.2%} with rank {adapter.rank}"


def test_no_bit_changes_beside_other_adapters(linears, adapters):
    """Else an answer would depend on who else asks."""
    planner = Planner(Tables(linears.groups))
    three, four = adapters[-4:-2]
    for adapter in adapters:
        alone = deltas(planner, linears, [adapter], [only(adapter)] * ROWS)
        others = [three, four, *adapters[:3]]
        rows = [only(item) for item in others[: ROWS - 3]]
        rows += [(*only(three), *only(four)), only(adapter), ()]
        beside = deltas(planner, linears, [*others, adapter], rows)
        changed = [
            group.names[0]
            for group, one, other in zip(linears.groups, alone, beside, strict=True)
            if not torch.equal(one[ROWS - 2], other[ROWS - 2])
        ]
        assert not changed, f"rank {adapter.rank}: {len(changed)} groups, {changed[:2]}"
        assert not any(other[ROWS - 1].any() for other in beside), "the base's row gets nothing"


def test_a_decoding_mixture_adds_the_weighted_sum_of_deltas(planner, linears, adapters):
    one, two = adapters[-2:]
    mixture = ((one.identity, 0.7), (two.identity, 0.3))
    mixed = deltas(planner, linears, [one, two], [mixture, *[only(two)] * (ROWS - 1)])
    first, second = (deltas(planner, linears, [a], [only(a)] * ROWS) for a in (one, two))
    for found, a, b in zip(mixed, first, second, strict=True):
        assert error(found[0], 0.7 * a[0] + 0.3 * b[0]) < 0.01
        assert error(found[1:], b[1:]) < 0.005


def test_layers_that_no_adapter_has_are_left_alone(planner, linears, adapters):
    """The head is given the last token of each row, not all of them."""
    (adapter,) = adapters[:1]
    plan = planner.plan([(40, only(adapter))], {adapter.identity: adapter})
    head = linears.groups[-1]
    assert head.names[0] not in adapter.factors
    y = torch.zeros(1, sum(head.widths), dtype=torch.bfloat16)
    plan.add(head.names[0], torch.full((1, head.in_features), torch.nan).bfloat16(), y)
    assert not y.any()


def test_adapters_out_of_memory_are_let_go(linears, adapters):
    """A plan that outlives its adapters would keep their bytes."""
    import gc
    import weakref

    groups = linears.groups
    for way in (Tables(groups), Packer(groups)):
        planner = Planner(way)
        factors = {name: (a.clone(), b.clone()) for name, (a, b) in adapters[0].factors.items()}
        adapter = Adapter("copy", factors)
        watched = weakref.ref(adapter)
        deltas(planner, linears, [adapter], [only(adapter)] * ROWS)
        assert way.memory_bytes == 0 or isinstance(way, Packer)
        del adapter, factors
        gc.collect()
        assert watched() is not None or isinstance(way, Packer), "a table holds its adapters"
        planner.keep({"others"})
        gc.collect()
        assert watched() is None
        assert way.memory_bytes == 0


def test_an_adapter_that_comes_back_is_looked_up_anew(linears, adapters):
    """Its bytes lie elsewhere than before it left memory."""
    planner, first = Planner(Tables(linears.groups)), adapters[0]
    expected = deltas(planner, linears, [first], [only(first)] * ROWS)
    zeros = {name: (a, torch.zeros_like(b)) for name, (a, b) in first.factors.items()}
    back = Adapter(first.identity, zeros)
    deltas(planner, linears, [adapters[1]], [only(adapters[1])] * ROWS)
    found = deltas(planner, linears, [back], [only(back)] * ROWS)
    assert any(item.any() for item in expected)
    assert not any(item.any() for item in found)


def test_the_price_of_a_segment_is_measured(linears):
    overhead = measured_overhead(linears.groups, linears.device, torch.bfloat16)
    assert 0 < overhead < 1e6


def test_a_table_points_to_factors_as_loaded(linears, adapters):
    """A copy would take bytes that no budget counts, and hold up those who decode."""
    shipped = adapters[0]
    targets = [Target.of(group) for group in linears.groups]
    table = Table.of(only(shipped), {shipped.identity: shipped}, targets)
    own = {item.data_ptr() for pair in shipped.factors.values() for item in pair}
    assert {item.data_ptr() for item in table.factors} == own
