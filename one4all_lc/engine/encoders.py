"""An engine of encoder experts: texts that wait together are one batch, whoever reads them."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.residency import Residency
from one4all_lc.base.threads import let_go, passing_threads
from one4all_lc.engine.encoding import Encoder, TextRow
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.registry import PerBase
from one4all_lc.engine.scheduler import CLOSED, Scheduler
from one4all_lc.engine.stats import Meter
from one4all_lc.engine.texts import CLOSED_EARLY, LogitsHandle, Text, TextRequest
from one4all_lc.errors import DeadlineExceeded, EngineClosed, InvalidInput

_log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
"""Rows of one batch times the longest of them."""

BESIDE_TOKENS = 1 << 10
"""The same while somebody decodes on the device, whose next token waits for the batch."""


@dataclass(frozen=True)
class EncoderStats:
    """One moment of an engine of encoders.

    Attributes:
        waiting: Texts that wait.
        texts: Texts read so far.
        tokens: Their tokens.
        steps: Forwards so far.
        adapters: Adapters in memory.
        adapter_bytes: Bytes that they take, heads included.
        adapter_loads: How often an adapter was read from disk.
        kernels: How the base's products are computed.
    """

    waiting: int
    texts: int
    tokens: int
    steps: int
    adapters: int
    adapter_bytes: int
    adapter_loads: int
    kernels: str


class EncoderEngine(PerBase):
    """Reads texts on one encoder base, the adapters and heads of many experts in one batch.

    `submit` may be called from any thread. While a batch is computed the next ones gather; nothing
    waits for a batch to fill. Where an `Engine` decodes on the same device, its thread computes the
    batches between two steps, so that one thread multiplies. A base has one engine:
    `EncoderEngine.of(base)` finds or makes it.

    Args:
        base: The shared base, an encoder.
        max_rows: Texts of one batch.
        max_waiting: Texts that wait; `submit` of more waits itself, or is refused.
        adapter_bytes: Adapters are kept in memory up to this many bytes.

    Raises:
        InvalidInput: The base has an engine already.
        ModelNotFound: The base is no encoder.

    Example:
        engine = EncoderEngine.of(SharedBase.load("intfloat/multilingual-e5-small"))
    """

    def __init__(
        self,
        base: SharedBase,
        *,
        max_rows: int = 64,
        max_waiting: int = 4096,
        adapter_bytes: int = 1 << 29,
    ) -> None:
        with self._made_for(base, max_rows=max_rows, max_waiting=max_waiting):
            self.max_rows = max_rows
            with passing_threads():
                self._encoder = Encoder(base)
            self.residency = Residency(base.device, base.dtype, adapter_bytes, self._stir)
            most = BATCH_TOKENS.get(base.device.type, BATCH_TOKENS["cpu"])
            self._scheduler = Scheduler[Text](self.residency, max_rows, max_waiting, most)
            self._meter = Meter()
            self._thread = threading.Thread(target=self._run, name="one4all-encoder", daemon=True)
            self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it takes no more texts; so it is in a forked process, without its thread."""
        return self._scheduler.closed or not self._thread.is_alive()

    def submit(
        self, requests: Sequence[TextRequest], *, patience: float | None = None
    ) -> list[LogitsHandle]:
        """Queue texts and return their handles, at once unless the queue is full.

        Args:
            requests: The texts; those of one call are likely to share a batch.
            patience: Seconds to wait while the queue is full; None waits as long as it takes.

        Raises:
            InvalidInput: A text has no tokens or more than the base reads, or its expert no head.
            EngineBusy: The queue stayed full.
            EngineClosed: The engine was closed.
        """
        for request in requests:
            self._check(request.row)
        if self.closed:
            raise EngineClosed(CLOSED)
        now = time.monotonic()
        texts = [Text(request, LogitsHandle(), now) for request in requests]
        try:
            with self._scheduler.at_once():
                for text in texts:
                    limits = [item for item in (patience, text.request.timeout) if item is not None]
                    self._scheduler.add(text, min(limits, default=None))
        except BaseException:
            for text in texts:
                text.handle.cancel()
            raise
        return [text.handle for text in texts]

    def close(self, *, drain: bool = False) -> None:
        """Stop.

        Args:
            drain: True lets those that wait be read first; else they end with EngineClosed.
        """
        for text in self._scheduler.close(drain=drain):
            text.handle.finish(EngineClosed(CLOSED_EARLY))
        self._ended()

    def stats(self) -> EncoderStats:
        """Return what it does at this moment and has done so far."""
        return EncoderStats(
            waiting=self._scheduler.waiting,
            texts=self._meter.ended["stop"],
            tokens=self._meter.tokens,
            steps=self._meter.steps,
            adapters=len(self.residency.identities),
            adapter_bytes=self.residency.memory_bytes,
            adapter_loads=self.residency.loads,
            kernels=self._encoder.kernels,
        )

    def _check(self, row: TextRow) -> None:
        length, room = len(row.tokens), self.base.context_length
        if not 0 < length <= room:
            msg = f"The text has {length:,} tokens, but {self.base.facts.id} reads 1 to {room:,}."
            raise InvalidInput(msg)
        if not row.expert.head:
            msg = f"{row.expert.name!r} is a {row.expert.card.kind} expert: it reads no texts."
            raise InvalidInput(msg)

    def _stir(self) -> None:
        self._scheduler.stir()

    def _run(self) -> None:
        try:
            while self._scheduler.wait():
                try:
                    self._take_turn()
                except Exception as error:  # a fault of the engine's own: nobody may wait for ever
                    _log.exception("the encoder's step failed")
                    for text in self._scheduler.running:
                        self._leave(text, error)
        finally:
            for text in [*self._scheduler.close(), *self._scheduler.running]:
                text.handle.finish(EngineClosed(CLOSED_EARLY))

    def _take_turn(self) -> None:
        """Read a batch, on the thread that multiplies on this device."""
        decoder = Engine.on(self.base.device)
        if decoder is not None and decoder.visit(lambda: self._step(beside=decoder.decodes)):
            return
        self._step()
        if not self._scheduler.waiting:
            let_go()

    @torch.inference_mode()
    def _step(self, *, beside: bool = False) -> None:
        """Let go of those that nobody waits for, admit a batch, and read it."""
        for text in self._scheduler.withdraw(time.monotonic()):
            text.handle.finish(_late(text))
        texts, refused = self._scheduler.admit(BESIDE_TOKENS if beside else None)
        for text, error in refused:
            text.handle.finish(error)
        if texts:
            self._read(texts)
        self._encoder.drop_all_but(self.residency)

    def _read(self, texts: Sequence[Text]) -> None:
        """Read a batch. If that fails, find out whose fault it is."""
        try:
            found = self._encoder.forward([text.request.row for text in texts], self.residency)
        except Exception as error:
            if len(texts) == 1:
                self._leave(texts[0], error)
                return
            _log.warning("a batch of %d texts failed (%s): reading them alone", len(texts), error)
            for text in texts:
                self._read([text])
            return
        self._meter.step(sum(text.longest for text in texts))
        for text, logits in zip(texts, found, strict=True):
            self._leave(text, logits)

    def _leave(self, text: Text, outcome: Tensor | Exception) -> None:
        """Free a place, then tell: whoever hears of it finds it counted."""
        self._scheduler.release(text)
        self.residency.release(text.request.row.expert)
        self._meter.end("error" if isinstance(outcome, Exception) else "stop")
        text.handle.finish(outcome)


def _late(text: Text) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The text was not read within {text.request.timeout} seconds: give it more time."
    )
