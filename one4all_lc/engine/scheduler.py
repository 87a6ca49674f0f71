"""Who runs next: requests wait their turn, join the running batch and leave it. Knows no torch.

A free slot goes to the request whose expert holds the fewest, so that a busy expert does not starve
the others, and among those the longest waiting; but to one whose adapters are in memory rather than
to one that would have to wait for them, so that a working set beyond memory is served in groups.
Neither rule lets a request be overtaken more than `MAX_OVERTAKEN` times: then it is the next.
"""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from one4all_lc.base.residency import Readiness
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Request
from one4all_lc.errors import EngineBusy, EngineClosed
from one4all_lc.folder import Expert

MAX_OVERTAKEN = 64
"""So many requests that came later may start before one that waits."""

CLOSED = "The engine is closed: Engine.of(base) makes a new one."

LOOKAHEAD = 8
"""Experts whose adapters are loaded ahead of their turn."""


class Asked(Protocol):
    """What a request must say to be scheduled."""

    @property
    def timeout(self) -> float | None:
        """Seconds within which it must have ended."""

    @property
    def experts(self) -> Sequence[tuple[Expert, float]]:
        """Whose adapters it needs, with weights."""

    @property
    def mixture(self) -> tuple[tuple[str, float], ...]:
        """The same by identity: who shares it is of one party."""


class Awaited(Protocol):
    """The consumer's end of a request."""

    @property
    def cancelled(self) -> bool:
        """Whether the consumer has asked to stop."""


@dataclass(eq=False)
class Queued:
    """A request on its way through an engine; only the engine's thread changes it.

    Attributes:
        request: What was asked.
        handle: Where the answer goes.
        submitted: `time.monotonic()` of the submission.
        arrival: Its number in the order of arrival.
        overtaken: How many that came later have started before it.
        slot: Its place among those that run.
    """

    request: Asked
    handle: Awaited
    submitted: float
    arrival: int = field(default=0, kw_only=True)
    overtaken: int = field(default=0, kw_only=True)
    slot: int = field(default=-1, kw_only=True)

    @property
    def longest(self) -> int:
        """Tokens that it may come to hold."""
        raise NotImplementedError

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` by which it must have ended."""
        timeout = self.request.timeout
        return None if timeout is None else self.submitted + timeout

    @property
    def overdue(self) -> bool:
        """Whether nobody may overtake it any more."""
        return self.overtaken >= MAX_OVERTAKEN

    def late(self, now: float) -> bool:
        """Whether its deadline has come."""
        return self.deadline is not None and now >= self.deadline


@dataclass(eq=False)
class Job(Queued):
    """A question to a decoder, whose slot is its row in the key/value cache.

    Attributes:
        max_tokens: Tokens that its answer may have, the context's room considered.
        closing: After so many tokens an answer of a form is brought to its end.
        prefilled: Tokens of the prompt that the cache holds.
        cached: How many of those were not computed again.
        tokens: Token ids chosen so far.
        first_token: `time.monotonic()` of the first of them.
        sampler: Chooses its tokens.
        text: Turns its tokens into text.
    """

    request: Request
    handle: Handle
    max_tokens: int
    closing: int = 0
    prefilled: int = 0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    first_token: float = 0.0
    sampler: Any = None
    text: Any = None

    @property
    def longest(self) -> int:
        """Tokens that it may come to hold in the cache."""
        return len(self.request.prompt) + self.max_tokens


J = TypeVar("J", bound=Queued)


class Adapters(Protocol):
    """Whatever keeps adapters in memory."""

    def acquire(self, experts: Sequence[Expert], *, load: bool) -> Readiness:
        """Take a request's adapters if all are in memory."""


class Scheduler(Generic[J]):
    """Gives free slots to those who wait.

    Low slots are filled first, so that the rows of one forward are neighbours in the cache.

    Args:
        adapters: Takes a request's adapters once it is to run.
        max_rows: Requests that run at once.
        max_waiting: Requests that wait for one of those places.
        max_cached_tokens: Rows times the longest of them, at most; a longer one runs alone.
    """

    def __init__(
        self, adapters: Adapters, max_rows: int, max_waiting: int, max_cached_tokens: int
    ) -> None:
        self._adapters = adapters
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._max_cached_tokens = max_cached_tokens
        self._news = threading.Condition()
        self._waiting: list[J] = []
        self._slots: dict[int, J] = {}
        self._arrivals = itertools.count()
        self._stirred = self._closed = self._draining = False

    def add(self, job: J, patience: float | None = None) -> None:
        """Put a request into the queue.

        Args:
            job: The request.
            patience: Seconds to wait while the queue is full; None waits as long as it takes.

        Raises:
            EngineBusy: The queue stayed full.
            EngineClosed: No more requests are taken.
        """
        with self._news:
            room = self._news.wait_for(
                lambda: self._closed or len(self._waiting) < self._max_waiting, patience
            )
            if self._closed:
                raise EngineClosed(CLOSED)
            if not room:
                msg = (
                    f"{self._max_waiting} requests wait already, as many as may: ask again later, "
                    "wait longer, or give the engine a larger max_waiting."
                )
                raise EngineBusy(msg)
            job.arrival = next(self._arrivals)
            self._waiting.append(job)
            self._stir()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let requests that are added inside the block be seen together, if there is room."""
        with self._news:
            yield

    def stir(self) -> None:
        """Wake the engine: something that a waiting request needs may have come."""
        with self._news:
            self._stir()

    def wait(self) -> bool:
        """Block until there is something to do; False once there will never be again."""
        with self._news:
            while not (self._stirred or self._slots or self._finished):
                ends = [job.deadline for job in self._waiting if job.deadline is not None]
                seconds = max(0.0, min(ends) - time.monotonic()) if ends else None
                if not self._news.wait(seconds):
                    break  # a deadline has come
            return not self._finished

    def admit(self, most: int | None = None) -> tuple[list[J], list[tuple[J, Exception]]]:
        """Give free slots to those who wait.

        Args:
            most: Rows times the longest of them, in the place of what holds else.

        Returns:
            The newcomers, and those whose adapters cannot be loaded, with the reason.
        """
        newcomers: list[J] = []
        refused: list[tuple[J, Exception]] = []
        with self._news:
            self._stirred = False
            while self._waiting and len(self._slots) < self._max_rows:
                told = len(refused)
                job = self._next(refused, most or self._max_cached_tokens)
                if job is None and len(refused) > told:
                    continue  # others may have waited behind the refused
                if job is None:
                    break
                self._waiting.remove(job)
                for other in self._waiting:
                    other.overtaken += other.arrival < job.arrival
                job.slot = next(i for i in range(self._max_rows) if i not in self._slots)
                self._slots[job.slot] = job
                newcomers.append(job)
            if newcomers or refused:
                self._news.notify_all()  # those who wait for room in the queue
        return newcomers, refused

    def release(self, job: J) -> None:
        """Free the slot of a request that has ended."""
        with self._news:
            del self._slots[job.slot]
            self._stir()

    def withdraw(self, now: float) -> list[J]:
        """Take out of the queue those that were cancelled, or came to their deadline."""
        with self._news:
            gone = [job for job in self._waiting if job.handle.cancelled or job.late(now)]
            if gone:
                self._waiting = [job for job in self._waiting if job not in gone]
                self._news.notify_all()
        return gone

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def running(self) -> list[J]:
        """The requests that hold a slot, by slot."""
        with self._news:
            return [self._slots[slot] for slot in sorted(self._slots)]

    @property
    def waiting(self) -> int:
        """How many requests hold none yet."""
        return len(self._waiting)

    @property
    def room(self) -> tuple[int, int]:
        """Slots and columns that the running requests may come to need in the cache."""
        longest = max((job.longest for job in self._slots.values()), default=0)
        return max(self._slots, default=-1) + 1, longest

    def close(self, *, drain: bool = False) -> list[J]:
        """Take no more requests; return those that wait, unless they are still to be served."""
        with self._news:
            self._closed, self._draining = True, drain
            waiting: list[J] = []
            if not drain:
                waiting, self._waiting = self._waiting, []
            self._stir()
        return waiting

    @property
    def _finished(self) -> bool:
        return self._closed and not (self._draining and (self._waiting or self._slots))

    def _stir(self) -> None:
        self._stirred = True
        self._news.notify_all()

    def _next(self, refused: list[tuple[J, Exception]], most: int) -> J | None:
        """Return the request that gets the next slot, its adapters taken."""
        rows = Counter(job.request.mixture for job in self._slots.values())
        heads: dict[object, J] = {}
        for job in self._waiting:
            heads.setdefault(job.request.mixture, job)
        order = sorted(heads.values(), key=lambda job: _turn(job, rows[job.request.mixture]))
        loading = 0
        for job in order:
            readiness = Readiness.FULL
            if self._fits(job, most):
                try:
                    load = loading < LOOKAHEAD
                    experts = [expert for expert, _ in job.request.experts]
                    readiness = self._adapters.acquire(experts, load=load)
                except Exception as error:
                    self._waiting.remove(job)
                    refused.append((job, error))
                    continue
            if readiness is Readiness.READY:
                return job
            if job.overdue:  # nobody else starts, so that what it needs comes free
                return None
            loading += 1
        return None

    def _fits(self, job: J, most: int) -> bool:
        if not self._slots:
            return True
        longest = max(self.room[1], job.longest)
        return (len(self._slots) + 1) * longest <= most


def _turn(job: Queued, rows: int) -> tuple[bool, int, int]:
    """What requests are sorted by: the overdue as they came, then who holds the fewest rows."""
    return not job.overdue, 0 if job.overdue else rows, job.arrival
