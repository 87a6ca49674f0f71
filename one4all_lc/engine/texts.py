"""What is asked of an engine of encoders, and where the logits are waited for."""

import asyncio
import contextlib
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass

from torch import Tensor

from one4all_lc.engine.encoding import TextRow
from one4all_lc.engine.scheduler import Queued
from one4all_lc.errors import EngineClosed
from one4all_lc.folder import Expert

CLOSED_EARLY = "The engine was closed before the text was read."


@dataclass(frozen=True)
class TextRequest:
    """A text for an encoder expert.

    Attributes:
        row: Its tokens, and who reads them.
        timeout: Seconds from submission within which it must be read; None sets no limit.
    """

    row: TextRow
    timeout: float | None = None

    @property
    def experts(self) -> tuple[tuple[Expert, float], ...]:
        """Whose adapter it needs."""
        return ((self.row.expert, 1.0),)

    @property
    def mixture(self) -> tuple[tuple[str, float], ...]:
        """The same by identity."""
        return ((self.row.expert.identity, 1.0),)


class LogitsHandle:
    """The consumer's end of a text: its logits, or the error that came in their place."""

    def __init__(self) -> None:
        self._future: Future[Tensor] = Future()

    @property
    def cancelled(self) -> bool:
        """Whether the consumer has asked to stop."""
        return self._future.cancelled()

    def cancel(self) -> None:
        """Ask not to be read; a text that was read stays so."""
        self._future.cancel()

    def result(self, timeout: float | None = None) -> Tensor:
        """Wait for the logits.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutError: They did not come in time.
        """
        try:
            return self._future.result(timeout)
        except CancelledError:
            raise EngineClosed(CLOSED_EARLY) from None

    async def aresult(self) -> Tensor:
        """Wait for the logits without blocking the event loop; who is cancelled cancels them."""
        return await asyncio.wrap_future(self._future)

    def finish(self, outcome: Tensor | BaseException) -> None:
        """End; the engine's call."""
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            if isinstance(outcome, BaseException):
                self._future.set_exception(outcome)
            else:
                self._future.set_result(outcome)


@dataclass(eq=False)
class Text(Queued):
    """A text on its way through the engine."""

    request: TextRequest
    handle: LogitsHandle

    @property
    def longest(self) -> int:
        """Its tokens."""
        return len(self.request.row.tokens)
