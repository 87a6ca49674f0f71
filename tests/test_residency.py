"""Thousands of experts share a few bytes of memory: none is lost while it answers, none blocks."""

import gc
import threading

import pytest
import torch

from one4all_lc.base.loading import DEFAULT_BASE, describe
from one4all_lc.base.residency import Readiness, Residency
from one4all_lc.errors import UnfitExpert
from one4all_lc.folder import read_expert
from one4all_lc.library import Library
from tests.asking import adapter_bytes, engine_with, request
from tests.experts import write_expert
from tests.prompts import PROMPTS

WAIT = 60
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def facts():
    return describe(DEFAULT_BASE)


@pytest.fixture(scope="module")
def folders(facts, tmp_path_factory):
    """Four small experts, of one size."""
    parent, modules = tmp_path_factory.mktemp("small"), list(facts.linears)[:7]
    return [write_expert(parent / name, facts, 4, seed, modules=modules) for seed, name in NAMES]


NAMES = tuple(enumerate(("a", "b", "c", "d")))


@pytest.fixture
def small(folders, facts):
    return [read_expert(folder, facts) for folder in folders]


@pytest.fixture
def memory():
    """A residency without a budget worth the name, and how to wait for its loads."""
    made = Memory()
    yield made
    made.gate.set()
    made.residency.close()


class Memory:
    """A residency whose loads pass a gate."""

    def __init__(self):
        self.ended = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.loaded = []
        self.broken = set()
        self.residency = Residency(CPU, torch.float32, 1, self.ended.release)
        self._load, self.residency.load = self.residency.load, self._gated

    def _gated(self, expert):
        self.begun.release()
        assert self.gate.wait(WAIT)
        self.loaded.append(expert.name)
        if expert.name in self.broken:
            msg = f"{expert.name} is broken"
            raise UnfitExpert(msg)
        return self._load(expert)

    def take(self, *experts):
        """Acquire, and wait for what has to be loaded."""
        for _ in range(5):
            readiness = self.residency.acquire(experts)
            if readiness is not Readiness.LOADING:
                return readiness
            assert self.ended.acquire(timeout=WAIT)
        pytest.fail("loaded again and again")

    def use(self, *experts):
        """Acquire and give back."""
        assert self.take(*experts) is Readiness.READY
        for expert in experts:
            self.residency.release(expert)

    def budget(self, expert, adapters):
        self.residency.budget = int(adapters * adapter_bytes(expert, 4))

    def names(self, experts):
        known = {expert.identity: expert.name for expert in experts}
        return "".join(known[identity] for identity in self.residency.identities)


def test_the_least_recently_used_leaves_memory_and_the_budget_holds(memory, small):
    a, b, c, d = small
    memory.budget(a, 3)
    for expert in (a, b, c, a):
        memory.use(expert)
    assert memory.names(small) == "bca"
    memory.use(d)
    assert memory.names(small) == "cad"
    assert memory.residency.memory_bytes == memory.residency.budget == 3 * adapter_bytes(a, 4)
    assert memory.residency.loads == 4


def test_what_is_in_use_is_never_evicted(memory, small):
    a, b, c, _ = small
    memory.budget(a, 5)
    assert memory.take(a) is Readiness.READY
    memory.use(b)
    memory.use(c)
    memory.budget(a, 1)
    memory.use(a)
    assert memory.names(small) == "a"
    assert memory.residency[a.identity].identity == a.identity


def test_who_finds_no_room_beside_what_is_in_use_waits_until_it_is_given_back(memory, small):
    a, b, *_ = small
    memory.budget(a, 1.9)
    assert memory.take(a) is Readiness.READY
    assert memory.take(b) is Readiness.FULL
    assert memory.names(small) == "a"
    memory.residency.release(a)
    assert memory.take(b) is Readiness.READY


def test_an_adapter_larger_than_the_budget_runs_alone_and_leaves(memory, small):
    memory.use(small[0])
    memory.use(small[1])
    assert memory.residency.memory_bytes == 0


@pytest.mark.parametrize("budget", [0, 1.5])
def test_a_mixture_larger_than_the_budget_runs_alone_too(memory, small, budget):
    """Nothing else will ever end that it could wait for."""
    memory.budget(small[0], budget)
    memory.use(small[0])
    memory.use(small[0], small[1])
    assert set(memory.loaded) == {"a", "b"}


def test_looking_loads_nothing(memory, small):
    assert memory.residency.acquire(small[:1], load=False) is Readiness.LOADING
    assert not memory.begun.acquire(blocking=False)


def test_two_who_ask_at_once_cause_one_load(memory, small):
    memory.gate.clear()
    assert memory.residency.acquire(small[:1]) is Readiness.LOADING
    assert memory.residency.acquire(small[:1]) is Readiness.LOADING
    memory.gate.set()
    assert memory.take(small[0]) is memory.take(small[0]) is Readiness.READY
    assert memory.loaded == ["a"]


def test_a_failed_load_is_told_once_and_the_next_one_may_try_again(memory, small):
    a, b, *_ = small
    memory.budget(a, 100)
    memory.broken = {"a"}
    with pytest.raises(UnfitExpert, match="a is broken"):
        memory.take(a)
    memory.use(b)
    with pytest.raises(UnfitExpert, match="a is broken"):
        memory.take(a)
    memory.broken = set()
    memory.use(a)
    assert memory.loaded == ["a", "b", "a", "a"]


def test_an_adapter_that_nobody_knows_any_more_leaves_memory(memory, facts, folders):
    library = Library(base=facts)
    library.add(folders[0])
    memory.budget(library["a"], 100)
    memory.use(library["a"])
    old = library["a"].identity
    assert old in memory.residency
    library.remove("a")
    gc.collect()
    assert old not in memory.residency
    assert memory.residency.memory_bytes == 0


def test_closing_loads_no_more(memory, small, monkeypatch):
    memory.budget(small[0], 100)
    memory.gate.clear()
    for expert in small[:3]:
        memory.residency.acquire([expert])
    assert memory.begun.acquire(timeout=WAIT)
    shutdown = memory.residency._loader.shutdown

    def opening(**settings):
        shutdown(**settings | {"wait": False})
        memory.gate.set()
        shutdown(**settings)

    monkeypatch.setattr(memory.residency._loader, "shutdown", opening)
    memory.residency.close()
    assert memory.loaded == ["a"]


def test_others_are_answered_while_an_adapter_loads(base_nf4, experts, monkeypatch):
    slow, quick = (request(base_nf4, PROMPTS[0], expert) for expert in experts[:2])
    with engine_with(base_nf4) as engine:
        expected = [engine.submit(item).result().tokens for item in (slow, quick)]
    with engine_with(base_nf4) as engine:
        engine.submit(quick).result()
        begun, gate, load = threading.Event(), threading.Event(), engine.residency.load

        def gated(expert):
            begun.set()
            assert gate.wait(WAIT)
            return load(expert)

        monkeypatch.setattr(engine.residency, "load", gated)
        handles = [engine.submit(slow) for _ in range(2)]
        assert begun.wait(WAIT)
        try:
            assert engine.submit(quick).result(WAIT).tokens == expected[1]
            assert not any(handle.done for handle in handles)
        finally:
            gate.set()
        assert [handle.result(WAIT).tokens for handle in handles] == [expected[0]] * 2
        assert engine.stats().adapter_loads == 2


def test_every_request_of_a_broken_adapter_is_told(base_nf4, experts, monkeypatch):
    broken = request(base_nf4, PROMPTS[0], experts[0])
    with engine_with(base_nf4) as engine:

        def failing(expert):
            msg = f"{expert.name} is broken"
            raise UnfitExpert(msg)

        monkeypatch.setattr(engine.residency, "load", failing)
        for handle in [engine.submit(broken) for _ in range(3)]:
            with pytest.raises(UnfitExpert, match="x0 is broken"):
                handle.result(10)
        monkeypatch.undo()
        assert engine.submit(broken).result(WAIT).tokens


def test_a_mixture_larger_than_the_budget_is_answered(base_nf4, experts):
    asked = request(base_nf4, PROMPTS[0], (experts[0], 0.7), (experts[1], 0.3), max_tokens=4)
    with engine_with(base_nf4, adapter_bytes=1) as engine:
        assert engine.submit(asked).result(10).tokens
