"""Whoever waits gets a row in its turn: no expert starves another, nobody waits for ever."""

import threading
import time
from types import SimpleNamespace

import pytest

from one4all_lc.base.residency import Readiness
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Request
from one4all_lc.engine.scheduler import LOOKAHEAD, MAX_OVERTAKEN, Job, Scheduler
from one4all_lc.errors import EngineBusy, EngineClosed

WAIT = 5


class FakeAdapters:
    """Says of each expert what the test wants; whatever it does not name is ready."""

    def __init__(self, **says):
        self.says = says
        self.asked = []

    def acquire(self, experts, *, load):
        name = experts[0].identity if experts else ""
        self.asked.append((name, load))
        answer = self.says.get(name, Readiness.READY)
        if isinstance(answer, Exception):
            raise answer
        return answer


def job(name, *, longest=8, timeout=None):
    experts = ((SimpleNamespace(identity=name), 1.0),) if name else ()
    request = Request((0,) * (longest - 4), experts, timeout=timeout)
    return Job(request, Handle(), time.monotonic(), 4)


def scheduler_of(adapters=None, *, rows=4, waiting=100, cached=10_000):
    return Scheduler(adapters or FakeAdapters(), rows, waiting, cached)


def add(scheduler, names):
    jobs = [job(name) for name in names]
    for item in jobs:
        scheduler.add(item)
    return jobs


def names(jobs):
    return "".join(item.request.mixture[0][0] for item in jobs)


def admitted(scheduler):
    return names(scheduler.admit()[0])


def test_a_busy_expert_does_not_starve_the_others():
    scheduler = scheduler_of()
    add(scheduler, "aaaaabc")
    assert admitted(scheduler) == "abca", "fewest rows first, then who came first"
    first_a, _, _, second_a = scheduler.running
    scheduler.release(first_a)
    scheduler.release(second_a)
    add(scheduler, "b")
    assert admitted(scheduler) == "aa", "a holds no row now: b, which holds one, comes after"


def test_who_needs_no_loading_goes_first():
    adapters = FakeAdapters(a=Readiness.LOADING)
    scheduler = scheduler_of(adapters)
    add(scheduler, "ab")
    assert admitted(scheduler) == "b"
    assert ("a", True) in adapters.asked, "meanwhile it loads"
    adapters.says.clear()
    assert admitted(scheduler) == "a"


@pytest.mark.parametrize("readiness", [Readiness.LOADING, Readiness.FULL])
def test_nobody_is_overtaken_without_end(readiness):
    adapters = FakeAdapters(a=readiness)
    scheduler = scheduler_of(adapters, rows=1)
    (late,) = add(scheduler, "a")
    for _ in range(MAX_OVERTAKEN):
        (other,) = add(scheduler, "b")
        assert admitted(scheduler) == "b"
        scheduler.release(other)
    assert late.overtaken == MAX_OVERTAKEN
    add(scheduler, "b")
    assert admitted(scheduler) == "", "now the others wait, so that what it needs comes free"
    adapters.says.clear()
    assert admitted(scheduler) == "a"
    scheduler.release(late)
    assert admitted(scheduler) == "b"


def test_what_does_not_fit_into_memory_waits_and_others_run():
    adapters = FakeAdapters(a=Readiness.FULL)
    scheduler = scheduler_of(adapters)
    add(scheduler, "ab")
    assert admitted(scheduler) == "b"
    assert scheduler.waiting == 1
    adapters.says["a"] = Readiness.READY
    assert admitted(scheduler) == "a"


def test_only_the_next_few_experts_are_loaded_ahead():
    missing = "abcdefghijkl"
    adapters = FakeAdapters(**dict.fromkeys(missing, Readiness.LOADING))
    scheduler = scheduler_of(adapters)
    add(scheduler, missing + "z")
    assert admitted(scheduler) == "z", "one in memory runs, however far behind"
    loads = {name for name, load in adapters.asked if load}
    assert loads == set(missing[:LOOKAHEAD])


def test_a_broken_adapter_is_told_to_its_requests_and_the_others_run():
    error = ValueError("broken")
    scheduler = scheduler_of(FakeAdapters(a=error))
    broken, _, again = add(scheduler, "aba")
    newcomers, refused = scheduler.admit()
    assert names(newcomers) == "b"
    assert refused[0] == (broken, error)
    told = [item for item, _ in [*refused, *scheduler.admit()[1]]]
    assert told == [broken, again]


def test_all_requests_of_a_broken_adapter_are_told_while_nothing_else_runs():
    """Whoever comes second would wait until somebody else asks something."""
    scheduler = scheduler_of(FakeAdapters(a=ValueError("broken")))
    waiting = add(scheduler, "aaa")
    told = []
    waker = threading.Timer(WAIT, scheduler.close)
    waker.daemon = True
    waker.start()
    while len(told) < len(waiting) and scheduler.wait():
        told += [item for item, _ in scheduler.admit()[1]]
    waker.cancel()
    assert told == waiting


def test_the_lowest_free_slot_is_taken():
    scheduler = scheduler_of(rows=3)
    jobs = add(scheduler, "abcdef")
    scheduler.admit()
    assert [item.slot for item in jobs[:3]] == [0, 1, 2]
    for i in (2, 0):
        scheduler.release(jobs[i])
    scheduler.admit()
    assert [item.slot for item in jobs[3:5]] == [0, 2]
    assert scheduler.running == [jobs[3], jobs[1], jobs[4]]
    assert scheduler.room == (3, 8)


def test_a_request_longer_than_the_cache_runs_alone_and_others_beside_each_other():
    scheduler = scheduler_of(cached=100)
    short = job("a", longest=40)
    for item in (short, job("b", longest=60), job("c", longest=50), job("d", longest=1000)):
        scheduler.add(item)
    assert admitted(scheduler) == "ac", "two rows of 60 are too many, of 50 are not"
    for item in scheduler.running:
        scheduler.release(item)
    assert admitted(scheduler) == "b"
    scheduler.release(scheduler.running[0])
    assert admitted(scheduler) == "d"


@pytest.fixture
def full():
    """A scheduler whose queue is full, and an event that tells that somebody waits for room."""
    scheduler = scheduler_of(waiting=1)
    add(scheduler, "a")
    waits, wait_for = threading.Event(), scheduler._news.wait_for

    def told(*arguments):
        waits.set()  # with the lock held: whoever gets the lock next finds this one waiting
        return wait_for(*arguments)

    scheduler._news.wait_for = told
    return scheduler, waits


def adding(scheduler, waits, item):
    """A thread that waits for room; its outcome comes into the list."""
    outcome = []

    def work():
        try:
            outcome.append(scheduler.add(item, WAIT))
        except EngineClosed as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert waits.wait(WAIT)
    return thread, outcome


def test_a_full_queue_refuses_who_would_not_wait(full):
    scheduler, _ = full
    with pytest.raises(EngineBusy, match="1 requests wait already"):
        scheduler.add(job("b"), 0)
    assert scheduler.waiting == 1


@pytest.mark.parametrize("how", ["one starts", "one is cancelled", "one is refused"])
def test_who_waits_for_a_full_queue_gets_in_when_room_comes(full, how):
    scheduler, waits = full
    item = job("b")
    thread, outcome = adding(scheduler, waits, item)
    if how == "one is cancelled":
        scheduler._waiting[0].handle.cancel()
        scheduler.withdraw(time.monotonic())
    else:
        scheduler._adapters.says = {"a": ValueError()} if how == "one is refused" else {}
        scheduler.admit()
    thread.join(WAIT)
    assert outcome == [None]
    assert scheduler._waiting == [item]


def test_who_waits_for_a_full_queue_is_told_when_the_engine_closes(full):
    scheduler, waits = full
    thread, outcome = adding(scheduler, waits, job("b"))
    assert names(scheduler.close()) == "a"
    thread.join(WAIT)
    assert isinstance(outcome[0], EngineClosed)
    with pytest.raises(EngineClosed):
        scheduler.add(job("c"))
    assert not scheduler.wait()


def test_the_cancelled_and_the_late_leave_the_queue():
    scheduler = scheduler_of()
    cancelled, stays, late = job("a"), job("b"), job("c", timeout=5)
    for item in (cancelled, stays, late):
        scheduler.add(item)
    cancelled.handle.cancel()
    assert scheduler.withdraw(late.submitted + 4) == [cancelled]
    assert scheduler.withdraw(late.submitted + 5) == [late]
    assert scheduler._waiting == [stays]


def test_an_idle_engine_wakes_for_a_deadline():
    scheduler = scheduler_of(FakeAdapters(a=Readiness.LOADING))
    item = job("a", timeout=0.05)
    scheduler.add(item)
    assert scheduler.wait()
    assert admitted(scheduler) == ""
    assert scheduler.wait()
    assert scheduler.withdraw(time.monotonic()) == [item]


def test_an_idle_engine_wakes_when_an_adapter_has_come():
    scheduler = scheduler_of(FakeAdapters(a=Readiness.LOADING))
    add(scheduler, "a")
    assert admitted(scheduler) == ""
    threading.Thread(target=scheduler.stir).start()
    assert scheduler.wait()


def test_closing_may_serve_those_who_wait_first():
    scheduler = scheduler_of(rows=1)
    jobs = add(scheduler, "ab")
    assert scheduler.close(drain=True) == []
    with pytest.raises(EngineClosed):
        scheduler.add(job("c"))
    for item in jobs:
        assert scheduler.wait()
        assert scheduler.admit()[0] == [item]
        scheduler.release(item)
    assert not scheduler.wait()
    assert scheduler.closed


def test_closing_at_once_leaves_only_what_runs():
    scheduler = scheduler_of(rows=1)
    running, waits = add(scheduler, "ab")
    scheduler.admit()
    assert scheduler.close() == [waits]
    assert scheduler.running == [running]
    assert not scheduler.wait()
