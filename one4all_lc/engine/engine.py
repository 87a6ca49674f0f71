"""One thread owns the base and runs everybody's requests together: schedule, run, emit."""

import atexit
import contextlib
import logging
import threading
import time
from typing import ClassVar, Self

from torch import Tensor

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import Mixture
from one4all_lc.base.residency import DEFAULT_BUDGET, Residency
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Completion, FinishReason, Piece, Request
from one4all_lc.engine.sampler import Sampler
from one4all_lc.engine.scheduler import Job, Scheduler
from one4all_lc.engine.text import TextStream
from one4all_lc.errors import EngineClosed, InvalidInput

_log = logging.getLogger(__name__)

PREFILL_CHUNK = 512
"""Prompt tokens between two steps of those who decode."""

MAX_CACHED_TOKENS = 1 << 16
"""Rows times the longest of them; the key/value cache holds at most twice as many."""

_CLOSED_EARLY = "The engine was closed before the answer was whole."


class Engine:
    """Runs requests on one base, many adapters in one batch.

    `submit` may be called from any thread and returns at once. A base has one engine:
    `Engine.of(base)` finds or makes it.

    Args:
        base: The shared base.
        max_rows: Requests that run at once; others wait.
        adapter_bytes: Adapters that nobody uses stay in memory up to this many bytes.

    Raises:
        InvalidInput: The base has an engine already.

    Example:
        engine = Engine.of(SharedBase.load())
        for piece in engine.submit(Request(prompt)):
            print(piece.text, end="")
    """

    _of: ClassVar[dict[SharedBase, "Engine"]] = {}
    _making: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self, base: SharedBase, *, max_rows: int = 32, adapter_bytes: int = DEFAULT_BUDGET
    ) -> None:
        if max_rows < 1:
            msg = f"max_rows is {max_rows}: an engine runs at least one request at a time."
            raise InvalidInput(msg)
        with Engine._making:
            if (other := Engine._of.get(base)) is not None and not other.closed:
                msg = f"{base.facts.id!r} has an engine: use Engine.of(base), or close that one."
                raise InvalidInput(msg)
            self.base = base
            self.max_rows = max_rows
            self.residency = Residency(base.device, base.dtype, adapter_bytes)
            self._decoder = Decoder(base)
            self._scheduler = Scheduler(max_rows, MAX_CACHED_TOKENS)
            self._end_tokens = base.end_tokens
            self._thread = threading.Thread(target=self._run, name="one4all-engine", daemon=True)
            self._thread.start()
            Engine._of[base] = self
        atexit.register(self.close)

    @classmethod
    def of(cls, base: SharedBase) -> Self:
        """Return the engine of a base, made if it has none."""
        with cls._making:
            engine = cls._of.get(base)
            if engine is None or engine.closed:
                engine = cls(base)
            return engine  # type: ignore[return-value]

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests; so it is in a forked process, without its thread."""
        return self._scheduler.closed or not self._thread.is_alive()

    def submit(self, request: Request) -> Handle:
        """Queue a request and return its handle at once.

        Raises:
            InvalidInput: The prompt is empty or leaves no room for an answer.
            UnfitExpert: An expert's weights are no longer those that it was read with.
            EngineClosed: The engine was closed.
        """
        max_tokens = min(request.sampling.max_tokens, self._room(request))
        job = Job(request, Handle(), time.monotonic(), max_tokens)
        job.sampler = Sampler(request.sampling, self.base.device)
        job.text = TextStream(self.base.tokenizer, request.sampling.stop)
        with contextlib.ExitStack() as undo:
            for expert, _ in request.experts:
                self.residency.acquire(expert)
                undo.callback(self.residency.release, expert.identity)
            if self.closed or not self._scheduler.add(job):
                msg = "The engine is closed: Engine.of(base) makes a new one."
                raise EngineClosed(msg)
            undo.pop_all()  # from here on `_end` releases them
        return job.handle

    def close(self) -> None:
        """Stop; requests that wait or run end with EngineClosed."""
        for job in self._scheduler.close():
            self._end(job, EngineClosed(_CLOSED_EARLY))
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)
        with Engine._making:
            if Engine._of.get(self.base) is self:
                del Engine._of[self.base]

    def _room(self, request: Request) -> int:
        """Return how many tokens an answer may have; refuse a prompt that leaves none."""
        length, room = len(request.prompt), self.base.context_length
        if not length:
            msg = "The prompt has no tokens: ask something."
            raise InvalidInput(msg)
        if length >= room:
            msg = (
                f"The prompt has {length:,} tokens, but {self.base.facts.id} reads {room:,}, "
                "answer included: shorten the question or what is given with it."
            )
            raise InvalidInput(msg)
        return room - length

    def _run(self) -> None:
        try:
            while self._scheduler.wait():
                try:
                    self._step()
                except Exception as error:  # a fault of the engine's own: nobody may wait for ever
                    _log.exception("the engine's step failed")
                    for job in self._scheduler.running:
                        self._leave(job, error)
        finally:
            for job in self._scheduler.close():
                self._end(job, EngineClosed(_CLOSED_EARLY))
            for job in self._scheduler.running:
                self._leave(job, EngineClosed(_CLOSED_EARLY))

    def _step(self) -> None:
        """Admit, read a chunk of one prompt, give everyone who is past the prompt a token."""
        for job in self._scheduler.withdraw_cancelled():
            self._end(job, "cancelled")
        if self._scheduler.admit():
            self._decoder.reserve(*self._scheduler.room)
        for job in self._scheduler.running:
            if job.handle.cancelled:
                self._leave(job, "cancelled")
        reading = [item for item in self._scheduler.running if not item.tokens]
        if reading:
            self._prefill(min(reading, key=lambda item: item.submitted))
        if any(item.tokens for item in self._scheduler.running):
            self._decode(self._scheduler.running)

    def _prefill(self, job: Job) -> None:
        """Read the next chunk of one prompt; the last one gives the first token."""
        prompt, start = job.request.prompt, job.prefilled
        chunk = prompt[start : start + PREFILL_CHUNK]
        row = RowInput(job.slot, chunk, start, _mixture(job.request))
        try:
            logits = self._decoder.forward([row], self.residency)
        except Exception as error:  # whatever it is, it is this request's
            self._leave(job, error)
            return
        job.prefilled += len(chunk)
        if job.prefilled == len(prompt):
            job.first_token = time.monotonic()
            self._emit(job, logits[0])

    def _decode(self, jobs: list[Job]) -> None:
        """Give every job its next token. If that fails, find out whose fault it is."""
        rows = [_next_row(job) for job in jobs]
        try:
            logits = self._decoder.forward(rows, self.residency)
        except Exception as error:
            if len(jobs) == 1:
                self._leave(jobs[0], error)
                return
            _log.warning("a batch of %d rows failed (%s): running them alone", len(rows), error)
            for job in jobs:
                if job.tokens:
                    self._decode([job])
            return
        for job, row_logits in zip(jobs, logits, strict=True):
            if job.tokens:
                self._emit(job, row_logits)

    def _emit(self, job: Job, logits: Tensor) -> None:
        """Choose a token, hand over the text that it makes certain, end if it was the last."""
        prompt, tokens = job.request.prompt, job.tokens
        try:
            token = job.sampler.choose(logits, prompt, tokens)
            tokens.append(token)
            ended = token in self._end_tokens
            text = "" if ended else job.text.push(token)
        except Exception as error:
            self._leave(job, error)
            return
        job.handle.put(Piece(text, (token,)))
        if ended or job.text.stopped:
            self._leave(job, "stop")
        elif len(tokens) >= job.max_tokens:
            self._leave(job, "length")

    def _leave(self, job: Job, how: FinishReason | Exception) -> None:
        """Free the slot of a running job and end it."""
        self._scheduler.release(job)
        if isinstance(how, Exception):
            try:
                self._decoder.forget(job.slot)
            except Exception:  # the device is beyond help: its readers must still hear of it
                _log.exception("slot %d could not be cleared", job.slot)
        self._end(job, how)

    def _end(self, job: Job, how: FinishReason | Exception) -> None:
        for expert, _ in job.request.experts:
            self.residency.release(expert.identity)
        try:
            if isinstance(how, Exception):
                raise how
            rest = job.text.finish()
            if rest:
                job.handle.put(Piece(rest, ()))
            job.handle.finish(_completion(job, how))
        except Exception as error:
            job.handle.fail(error)


def _completion(job: Job, how: FinishReason) -> Completion:
    now = time.monotonic()
    return Completion(
        text=job.text.text,
        tokens=tuple(job.tokens),
        finish_reason=how,
        prompt_tokens=len(job.request.prompt),
        first_token_seconds=(job.first_token or now) - job.submitted,
        seconds=now - job.submitted,
    )


def _next_row(job: Job) -> RowInput:
    """The row of a job in a step of one token each.

    One that still reads its prompt is carried along between its neighbours: it writes where its
    next chunk will write again, and its logits are dropped.
    """
    request, tokens = job.request, job.tokens
    if not tokens:
        return RowInput(job.slot, (0,), job.prefilled, ())
    start = len(request.prompt) + len(tokens) - 1
    return RowInput(job.slot, tokens[-1:], start, _mixture(request))


def _mixture(request: Request) -> Mixture:
    return tuple((expert.identity, weight) for expert, weight in request.experts)
