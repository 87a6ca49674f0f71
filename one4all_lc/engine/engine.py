"""One thread owns the base and runs everybody's requests together: schedule, run, emit."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.residency import Residency
from one4all_lc.base.threads import let_go, passing_threads
from one4all_lc.engine.attention import TILE
from one4all_lc.engine.cache import Columns
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.engine.grammar import CLOSING_TOKENS, Grammars
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.prefix import PrefixCache
from one4all_lc.engine.registry import PerBase
from one4all_lc.engine.request import Completion, FinishReason, Piece, Request
from one4all_lc.engine.rows import next_rows
from one4all_lc.engine.sampler import Sampler, likeliest
from one4all_lc.engine.scheduler import CLOSED, Job, Scheduler
from one4all_lc.engine.stats import EngineStats, Meter
from one4all_lc.engine.text import TextStream
from one4all_lc.engine.visits import Visits
from one4all_lc.errors import DeadlineExceeded, EngineClosed, InvalidInput

_log = logging.getLogger(__name__)

MAX_CACHED_TOKENS = 1 << 16
"""Rows times the longest of them; the key/value cache holds at most twice as many."""

_CLOSED_EARLY = "The engine was closed before the answer was whole."


class Engine(PerBase):
    """Runs requests on one base, many adapters in one batch.

    `submit` may be called from any thread. A base has one engine: `Engine.of(base)` finds or makes
    it.

    Args:
        base: The shared base.
        max_rows: Requests that run at once; others wait.
        max_waiting: Requests that wait; `submit` of one more waits itself, or is refused.
        adapter_bytes: Adapters, packed ones included, are kept in memory up to this many bytes.
        prefix_bytes: Beginnings of prompts are kept up to this many bytes; 0 keeps none.

    Raises:
        InvalidInput: The base has an engine already.
        ModelNotFound: The base attends in a way that is not computed here.

    Example:
        engine = Engine.of(SharedBase.load())
        for piece in engine.submit(Request(prompt)):
            print(piece.text, end="")
    """

    def __init__(
        self,
        base: SharedBase,
        *,
        max_rows: int = 32,
        max_waiting: int = 1024,
        adapter_bytes: int = 1 << 30,
        prefix_bytes: int = 1 << 28,
    ) -> None:
        with self._made_for(base, max_rows=max_rows, max_waiting=max_waiting):
            self.max_rows = max_rows
            # Where adapters are packed for decoding, they take half as much again as loaded.
            packed_bytes = adapter_bytes * 3 // 5
            with passing_threads():
                self._decoder = self._make_decoder(packed_bytes)
            loaded_bytes = adapter_bytes - (packed_bytes if self._decoder.packs else 0)
            self.adapter_bytes = adapter_bytes
            self.residency = self._make_residency(loaded_bytes)
            self._scheduler = Scheduler[Job](
                self.residency, max_rows, max_waiting, MAX_CACHED_TOKENS
            )
            self._visits = Visits(self._stir)
            self._prefixes = PrefixCache[Columns](prefix_bytes, TILE)
            self._meter = Meter()
            self._end_tokens = base.end_tokens
            self._grammars = Grammars(base.tokenizer, base.end_tokens)
            self._thread = threading.Thread(target=self._run, name="one4all-engine", daemon=True)
            self._thread.start()

    @classmethod
    def on(cls, device: torch.device) -> "Engine | None":
        """Return an open engine that computes on a device, if there is any."""
        found = (item for item in list(cls._of.values()) if item.base.device == device)
        return next((item for item in found if not item.closed), None)

    def visit(self, work: Callable[[], None]) -> bool:
        """Run something on the engine's thread between two steps, and wait for its end.

        So that one thread multiplies on a device, whatever models it serves.

        Returns:
            False if the engine was closed before it could.
        """
        return self._visits.ask(work)

    @property
    def decodes(self) -> bool:
        """Whether requests run at this moment."""
        return bool(self._scheduler.running)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests; so it is in a forked process, without its thread."""
        return self._scheduler.closed or not self._thread.is_alive()

    def submit(self, request: Request, *, patience: float | None = None) -> Handle:
        """Queue a request and return its handle, at once unless the queue is full.

        Args:
            request: What is asked.
            patience: Seconds to wait while the queue is full; 0 does not wait, None as long as
                it takes.

        Raises:
            InvalidInput: The prompt is empty or leaves no room for an answer, or the form asked of
                it cannot be enforced.
            EngineBusy: The queue stayed full.
            EngineClosed: The engine was closed.
        """
        more = CLOSING_TOKENS if request.grammar else 0
        max_tokens = min(request.sampling.max_tokens + more, self._room(request))
        matcher = self._grammars.matcher(request.grammar) if request.grammar else None
        job = Job(request, Handle(), time.monotonic(), max_tokens)
        # Where the context has little room left, half of it is for becoming whole.
        job.closing = min(request.sampling.max_tokens, max(max_tokens - more, max_tokens // 2))
        job.sampler = Sampler(
            request.sampling, self.base.device, self._end_tokens, matcher, job.closing
        )
        job.text = TextStream(
            self.base.tokenizer, request.sampling.stop, special_tokens=request.special_tokens
        )
        if self.closed:
            raise EngineClosed(CLOSED)
        limits = [item for item in (patience, request.timeout) if item is not None]
        self._scheduler.add(job, min(limits, default=None))
        return job.handle

    def close(self, *, drain: bool = False) -> None:
        """Stop.

        Args:
            drain: True lets those that wait or run end first; else they end with EngineClosed.
        """
        for job in self._scheduler.close(drain=drain):
            self._end(job, EngineClosed(_CLOSED_EARLY))
        self._ended()

    def stats(self) -> EngineStats:
        """Return what it does at this moment and has done so far."""
        meter, residency, prefixes = self._meter, self.residency, self._prefixes
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
            tokens_per_second=meter.tokens_per_second,
            first_token_seconds=meter.first_token_seconds,
            tokens=meter.tokens,
            steps=meter.steps,
            ended=dict(meter.ended),
            adapters=len(residency.identities),
            adapter_bytes=residency.memory_bytes,
            packed_bytes=self._decoder.packed_bytes,
            adapter_budget=self.adapter_bytes,
            adapter_loads=residency.loads,
            recorded_bytes=self._decoder.recorded_bytes,
            prefix_bytes=prefixes.memory_bytes,
            prefix_budget=prefixes.budget,
            prompt_tokens=prefixes.asked_tokens,
            cached_tokens=prefixes.hit_tokens,
            kernels=self._decoder.kernels,
        )

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

    # `testing.FakeEngine` has both without weights.
    def _make_residency(self, budget: int) -> Residency:
        return Residency(self.base.device, self.base.dtype, budget, self._stir)

    def _make_decoder(self, packed_bytes: int) -> Decoder:
        return Decoder(self.base, packed_bytes)

    def _stir(self) -> None:
        self._scheduler.stir()

    def _run(self) -> None:
        try:
            while self._scheduler.wait():
                try:
                    with torch.inference_mode():
                        self._step()
                except Exception as error:  # a fault of the engine's own: nobody may wait for ever
                    _log.exception("the engine's step failed")
                    for job in self._scheduler.running:
                        self._leave(job, error)
                if not self._scheduler.running:
                    let_go()
        finally:
            for job in self._scheduler.close():
                self._end(job, EngineClosed(_CLOSED_EARLY))
            for job in self._scheduler.running:
                self._leave(job, EngineClosed(_CLOSED_EARLY))
            self._visits.close()

    def _step(self) -> None:
        """Let go, admit, and run everybody's next tokens in one forward."""
        self._visits.receive()
        self._let_go()
        newcomers, refused = self._scheduler.admit()
        for job, error in refused:
            self._end(job, error)
        if newcomers:
            self._decoder.cache.reserve(*self._scheduler.room)
        jobs, rows = next_rows(self._scheduler.running, self._reuse_prefix)
        if rows:
            self._forward(jobs, rows)
        self._decoder.drop_all_but(self.residency)

    def _let_go(self) -> None:
        """End those that were cancelled or came to their deadline."""
        now = time.monotonic()
        for job in self._scheduler.withdraw(now):
            self._end(job, _why(job))
        for job in self._scheduler.running:
            if job.handle.cancelled or job.late(now):
                self._leave(job, _why(job))

    def _reuse_prefix(self, job: Job) -> None:
        """Put what is known of a prompt's beginning into its slot."""
        blocks = self._prefixes.find(job.request.mixture, job.request.prompt)
        for i, block in enumerate(blocks):
            self._decoder.cache.write(job.slot, slice(i * TILE, (i + 1) * TILE), block)
        job.prefilled = job.cached = len(blocks) * TILE

    def _forward(self, jobs: Sequence[Job], rows: Sequence[RowInput]) -> None:
        """Run the rows. If that fails, find out whose fault it is."""
        try:
            logits = self._decoder.forward(rows, self.residency)
        except Exception as error:
            if len(jobs) == 1:
                self._leave(jobs[0], error)
                return
            _log.warning("a batch of %d rows failed (%s): running them alone", len(rows), error)
            for job, row in zip(jobs, rows, strict=True):
                self._forward([job], [row])
            return
        self._emit(jobs, rows, logits)

    def _emit(self, jobs: Sequence[Job], rows: Sequence[RowInput], logits: Tensor) -> None:
        """Give everybody who is past the prompt a token."""
        counts = [len(job.tokens) for job in jobs]
        chosen = likeliest(logits, [job.sampler for job in jobs], counts)
        given = 0
        for i, (job, row) in enumerate(zip(jobs, rows, strict=True)):
            job.prefilled = max(job.prefilled, row.start + len(row.tokens))
            if job.prefilled >= len(job.request.prompt):
                given += 1
                self._give(job, chosen[i], logits[i])
        self._meter.step(given)

    def _give(self, job: Job, likeliest_token: int | None, logits: Tensor) -> None:
        """Choose a token, hand over the text that it makes certain, end if it was the last."""
        prompt, tokens = job.request.prompt, job.tokens
        try:
            token = likeliest_token
            if token is None:
                token = job.sampler.choose(logits, prompt, tokens)
            tokens.append(token)
            whole = job.sampler.accept(token)
            ended = token in self._end_tokens and (
                whole or len(tokens) > job.request.sampling.min_tokens
            )
            text = "" if ended else job.text.push(token)
        except Exception as error:
            self._leave(job, error)
            return
        if len(tokens) == 1:
            self._first_token(job)
        job.handle.put(Piece(text, (token,)))
        in_time = job.request.grammar is None or len(tokens) <= job.closing
        if ended or whole or job.text.stopped:
            self._leave(job, "stop" if in_time else "length")
        elif len(tokens) >= job.max_tokens:
            self._leave(job, "length")

    def _first_token(self, job: Job) -> None:
        """Note the time, and keep the prompt: now it is known that its numbers are sound."""
        job.first_token = time.monotonic()
        self._meter.first_token(job.first_token - job.submitted)
        self._prefixes.store(
            job.request.mixture,
            job.request.prompt,
            lambda columns: self._decoder.cache.read(job.slot, columns),
        )

    def _leave(self, job: Job, how: FinishReason | Exception) -> None:
        """Free the slot of a running job and end it."""
        self._scheduler.release(job)
        for expert, _ in job.request.experts:
            self.residency.release(expert)
        if how not in ("stop", "length"):  # else its numbers were sound to the end
            try:
                self._decoder.forget(job.slot)
            except Exception:  # the device is beyond help: its readers must still hear of it
                _log.exception("slot %d could not be cleared", job.slot)
        self._end(job, how)

    def _end(self, job: Job, how: FinishReason | Exception) -> None:
        """Count the end, then tell it: whoever hears of it finds it counted."""
        try:
            if isinstance(how, Exception):
                raise how
            rest = job.text.finish()
            if rest:
                job.handle.put(Piece(rest, ()))
            completion = _completion(job, how)
        except Exception as error:
            self._meter.end("deadline" if isinstance(error, DeadlineExceeded) else "error")
            job.handle.fail(error)
        else:
            self._meter.end(how)
            job.handle.finish(completion)


def _why(job: Job) -> FinishReason | Exception:
    """Why a job that is not done has to go."""
    if job.handle.cancelled:
        return "cancelled"
    return DeadlineExceeded(
        f"The answer was not whole within {job.request.timeout} seconds ({len(job.tokens)} tokens "
        "were): ask for fewer tokens, or give it more time."
    )


def _completion(job: Job, how: FinishReason) -> Completion:
    now = time.monotonic()
    return Completion(
        text=job.text.text,
        tokens=tuple(job.tokens),
        finish_reason=how,
        prompt_tokens=len(job.request.prompt),
        cached_tokens=job.cached,
        first_token_seconds=(job.first_token or now) - job.submitted,
        seconds=now - job.submitted,
    )
