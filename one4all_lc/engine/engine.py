"""One thread owns the base and runs everybody's requests together: schedule, run, emit."""

import atexit
import contextlib
import logging
import threading
import time
import weakref
from typing import ClassVar, Self

from torch import Tensor

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import Mixture
from one4all_lc.base.residency import DEFAULT_BUDGET, Residency
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Completion, FinishReason, Piece, Request
from one4all_lc.engine.sampler import Sampler
from one4all_lc.engine.scheduler import Scheduler, Sequence
from one4all_lc.engine.text import TextStream
from one4all_lc.errors import EngineClosed, InvalidInput

_log = logging.getLogger(__name__)

PREFILL_CHUNK = 512
"""Prompt tokens between two steps of those who decode."""

MAX_CACHED_TOKENS = 1 << 16
"""Rows times the longest of them: what bounds the key/value cache."""

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

    _of: ClassVar[weakref.WeakKeyDictionary[SharedBase, "Engine"]] = weakref.WeakKeyDictionary()
    _making: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self, base: SharedBase, *, max_rows: int = 32, adapter_bytes: int = DEFAULT_BUDGET
    ) -> None:
        with Engine._making:
            if (other := Engine._of.get(base)) is not None and not other.closed:
                msg = f"{base.facts.id!r} has an engine: use Engine.of(base), or close that one."
                raise InvalidInput(msg)
            Engine._of[base] = self
        self.base = base
        self.max_rows = max_rows
        self.residency = Residency(base.device, base.dtype, adapter_bytes)
        self._decoder = Decoder(base)
        self._scheduler = Scheduler(max_rows, MAX_CACHED_TOKENS)
        self._end_tokens = base.end_tokens
        self._thread = threading.Thread(target=self._run, name="one4all-engine", daemon=True)
        self._thread.start()
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
        """Whether it takes no more requests."""
        return self._scheduler.closed

    def submit(self, request: Request) -> Handle:
        """Queue a request and return its handle at once.

        Raises:
            InvalidInput: The prompt is empty or leaves no room for an answer.
            UnfitExpert: An expert's weights are no longer those that it was read with.
            EngineClosed: The engine was closed.
        """
        self._check(request)
        sequence = Sequence(request, Handle(), time.monotonic())
        sequence.sampler = Sampler(request.sampling, self.base.device)
        sequence.text = TextStream(self.base.tokenizer, request.sampling.stop)
        with contextlib.ExitStack() as undo:
            for expert, _ in request.experts:
                self.residency.acquire(expert)
                undo.callback(self.residency.release, expert.identity)
            if not self._scheduler.add(sequence):
                msg = "The engine is closed: Engine.of(base) makes a new one."
                raise EngineClosed(msg)
            undo.pop_all()  # from here on `_end` releases them
        return sequence.handle

    def close(self) -> None:
        """Stop; requests that wait or run end with EngineClosed."""
        for sequence in self._scheduler.close():
            self._end(sequence, EngineClosed(_CLOSED_EARLY))
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)
        with Engine._making:
            if Engine._of.get(self.base) is self:
                del Engine._of[self.base]

    def _check(self, request: Request) -> None:
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

    def _run(self) -> None:
        while self._scheduler.wait():
            try:
                self._step()
            except Exception as error:  # a fault of the engine's own: nobody may wait for ever
                _log.exception("the engine's step failed")
                for sequence in self._scheduler.running:
                    self._leave(sequence, error)
        for sequence in self._scheduler.running:
            self._leave(sequence, EngineClosed(_CLOSED_EARLY))

    def _step(self) -> None:
        """Admit, read a chunk of one prompt, give everyone who is past the prompt a token."""
        for sequence in self._scheduler.withdraw_cancelled():
            self._end(sequence, "cancelled")
        self._scheduler.admit()
        for sequence in self._scheduler.running:
            if sequence.handle.cancelled:
                self._leave(sequence, "cancelled")
        reading = [item for item in self._scheduler.running if not item.tokens]
        if reading:
            self._prefill(min(reading, key=lambda item: item.submitted))
        if any(item.tokens for item in self._scheduler.running):
            self._decode(self._scheduler.running)

    def _prefill(self, sequence: Sequence) -> None:
        """Read the next chunk of one prompt; the last one gives the first token."""
        prompt, start = sequence.request.prompt, sequence.prefilled
        chunk = prompt[start : start + PREFILL_CHUNK]
        row = RowInput(sequence.slot, chunk, start, _mixture(sequence.request))
        try:
            logits = self._decoder.forward([row], self.residency)
        except Exception as error:  # whatever it is, it is this request's
            self._leave(sequence, error)
            return
        sequence.prefilled += len(chunk)
        if sequence.prefilled == len(prompt):
            sequence.first_token = time.monotonic()
            self._emit(sequence, logits[0])

    def _decode(self, sequences: list[Sequence]) -> None:
        """Give every sequence its next token. If that fails, find out whose fault it is."""
        rows = [_next_row(sequence) for sequence in sequences]
        try:
            logits = self._decoder.forward(rows, self.residency)
        except Exception as error:
            if len(sequences) == 1:
                self._leave(sequences[0], error)
                return
            _log.warning("a batch of %d rows failed (%s): running them alone", len(rows), error)
            for sequence in sequences:
                if sequence.tokens:
                    self._decode([sequence])
            return
        for sequence, row_logits in zip(sequences, logits, strict=True):
            if sequence.tokens:
                self._emit(sequence, row_logits)

    def _emit(self, sequence: Sequence, logits: Tensor) -> None:
        """Choose a token, hand over the text that it makes certain, end if it was the last."""
        prompt, tokens = sequence.request.prompt, sequence.tokens
        try:
            token = sequence.sampler.choose(logits, prompt, tokens)
            tokens.append(token)
            ended = token in self._end_tokens
            text = "" if ended else sequence.text.push(token)
        except Exception as error:
            self._leave(sequence, error)
            return
        sequence.handle.put(Piece(text, (token,)))
        room = self.base.context_length - len(prompt)
        if ended or sequence.text.stopped:
            self._leave(sequence, "stop")
        elif len(tokens) >= min(sequence.request.sampling.max_tokens, room):
            self._leave(sequence, "length")

    def _leave(self, sequence: Sequence, how: FinishReason | Exception) -> None:
        """Free the slot of a running sequence and end it."""
        if isinstance(how, Exception):
            self._decoder.forget(sequence.slot)
        self._scheduler.release(sequence)
        self._end(sequence, how)

    def _end(self, sequence: Sequence, how: FinishReason | Exception) -> None:
        for expert, _ in sequence.request.experts:
            self.residency.release(expert.identity)
        if isinstance(how, Exception):
            sequence.handle.fail(how)
            return
        rest = sequence.text.finish()
        if rest:
            sequence.handle.put(Piece(rest, ()))
        now = time.monotonic()
        completion = Completion(
            text=sequence.text.text,
            tokens=tuple(sequence.tokens),
            finish_reason=how,
            prompt_tokens=len(sequence.request.prompt),
            first_token_seconds=(sequence.first_token or now) - sequence.submitted,
            seconds=now - sequence.submitted,
        )
        sequence.handle.finish(completion)


def _next_row(sequence: Sequence) -> RowInput:
    """The row of a sequence in a step of one token each.

    One that still reads its prompt is carried along between its neighbours: it writes where its
    next chunk will write again, and its logits are dropped.
    """
    request, tokens = sequence.request, sequence.tokens
    if not tokens:
        return RowInput(sequence.slot, (0,), sequence.prefilled, ())
    start = len(request.prompt) + len(tokens) - 1
    return RowInput(sequence.slot, tokens[-1:], start, _mixture(request))


def _mixture(request: Request) -> Mixture:
    return tuple((expert.identity, weight) for expert, weight in request.experts)
