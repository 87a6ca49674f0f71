"""The consumer's end of a request: pieces as they come, the completion, cancellation."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from one4all_lc.engine.request import Completion, Piece


class Handle:
    """What `Engine.submit` returns.

    Iterate over it, with `for` or `async for`, to read pieces as they come; every reader sees all
    of them. Errors of the request are raised where it is read.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._pieces: list[Piece] = []
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []
        self._cancelled = False

    @property
    def done(self) -> bool:
        """Whether the request has ended, well or not."""
        return self._completion is not None or self._error is not None

    @property
    def cancelled(self) -> bool:
        """Whether the consumer has asked to stop."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the engine to stop; it does at its next step. A request that has ended stays so."""
        self._cancelled = True

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutError: It did not end in time.
        """
        if not self._over.wait(timeout):  # not `_changed`: it would wake for every token
            msg = f"The request did not end within {timeout} seconds."
            raise TimeoutError(msg)
        return self._ended()

    async def aresult(self) -> Completion:
        """Wait for the end without blocking the event loop."""
        async for _ in self:
            pass
        return self._ended()

    def __iter__(self) -> Iterator[Piece]:
        read = 0
        while True:
            with self._changed:
                while not self._more_than(read):
                    self._changed.wait()
                news = self._pieces[read:]
            if not news:
                self._ended()
                return
            yield from news
            read += len(news)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        read = 0
        while True:
            await self._wait_for_more_than(read)
            news = self._pieces[read:]
            if not news:
                self._ended()
                return
            for piece in news:
                yield piece
            read += len(news)

    def put(self, piece: Piece) -> None:
        """Hand over a piece; the engine's call."""
        with self._telling():
            self._pieces.append(piece)

    def finish(self, completion: Completion) -> None:
        """End well; the engine's call."""
        with self._telling():
            self._completion = completion

    def fail(self, error: BaseException) -> None:
        """End with an error; the engine's call."""
        with self._telling():
            self._error = error

    def _ended(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None  # only called once the request has ended
        return self._completion

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Change something, and wake whoever waits for a change."""
        with self._changed:
            yield
            if self.done:
                self._over.set()
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for waker in wakers:
            with contextlib.suppress(RuntimeError):  # the reader's event loop is closed
                waker()

    def _more_than(self, read: int) -> bool:
        return self.done or len(self._pieces) > read

    async def _wait_for_more_than(self, read: int) -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        with self._changed:
            if self._more_than(read):
                return
            self._wakers.append(lambda: _set_in(loop, woken))
        await woken.wait()


def _set_in(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
