"""Who runs next: requests wait their turn, join the running batch and leave it. Knows no torch."""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Request


@dataclass(eq=False)
class Job:
    """A request on its way through the engine; only the engine's thread changes it.

    Attributes:
        request: What was asked.
        handle: Where the answer goes.
        submitted: `time.monotonic()` of the submission.
        max_tokens: Tokens that its answer may have, the context's room considered.
        slot: Its row in the key/value cache once it runs.
        prefilled: Tokens of the prompt that the cache holds.
        tokens: Token ids chosen so far.
        first_token: `time.monotonic()` of the first of them.
        sampler: Chooses its tokens.
        text: Turns its tokens into text.
    """

    request: Request
    handle: Handle
    submitted: float
    max_tokens: int
    slot: int = -1
    prefilled: int = 0
    tokens: list[int] = field(default_factory=list)
    first_token: float = 0.0
    sampler: Any = None
    text: Any = None

    @property
    def longest(self) -> int:
        """Tokens that it may come to hold in the cache."""
        return len(self.request.prompt) + self.max_tokens


class Scheduler:
    """First come, first served, into the lowest free slot.

    Low slots are filled first, so that the rows of one forward are the slots from 0 to the highest
    one in use: a slice of the cache, never a copy.

    Args:
        max_rows: Requests that run at once.
        max_cached_tokens: Rows times the longest of them, at most; a longer one runs alone.
    """

    def __init__(self, max_rows: int, max_cached_tokens: int) -> None:
        self._max_rows = max_rows
        self._max_cached_tokens = max_cached_tokens
        self._news = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._slots: dict[int, Job] = {}
        self._closed = False

    def add(self, job: Job) -> bool:
        """Put a request at the end of the queue; False if the scheduler is closed."""
        with self._news:
            if self._closed:
                return False
            self._waiting.append(job)
            self._news.notify()
            return True

    def wait(self) -> bool:
        """Block until there is something to do; False once closed."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self._waiting or self._slots)
            return not self._closed

    def admit(self) -> list[Job]:
        """Give free slots to those who wait, in order; return the newcomers."""
        newcomers: list[Job] = []
        with self._news:
            while self._waiting and self._fits(self._waiting[0]):
                job = self._waiting.popleft()
                job.slot = next(i for i in range(self._max_rows) if i not in self._slots)
                self._slots[job.slot] = job
                newcomers.append(job)
        return newcomers

    def release(self, job: Job) -> None:
        """Free the slot of a request that has ended."""
        with self._news:
            del self._slots[job.slot]

    def withdraw_cancelled(self) -> list[Job]:
        """Take out of the queue those that were cancelled while they waited."""
        with self._news:
            gone = [job for job in self._waiting if job.handle.cancelled]
            if gone:
                self._waiting = deque(item for item in self._waiting if item not in gone)
        return gone

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def running(self) -> list[Job]:
        """The requests that hold a slot, by slot."""
        return [self._slots[slot] for slot in sorted(self._slots)]

    @property
    def room(self) -> tuple[int, int]:
        """Slots and columns that the running requests may come to need in the cache."""
        longest = max((job.longest for job in self._slots.values()), default=0)
        return max(self._slots, default=-1) + 1, longest

    def close(self) -> list[Job]:
        """Take no more requests; return those that wait."""
        with self._news:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._news.notify_all()
        return waiting

    def _fits(self, job: Job) -> bool:
        if not self._slots:
            return True
        rows = len(self._slots) + 1
        longest = max(self.room[1], job.longest)
        return rows <= self._max_rows and rows * longest <= self._max_cached_tokens
