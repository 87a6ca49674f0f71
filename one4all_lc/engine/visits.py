"""Work of others on an engine's thread, between two of its steps.

Two threads that multiply on one processor slow each other down (see `base.threads`): so an engine
of encoders has its batches computed by the thread of the engine that decodes, where there is one.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future


class Visits:
    """What waits for an engine's thread.

    Args:
        stir: Wakes that thread.
    """

    def __init__(self, stir: Callable[[], None]) -> None:
        self._stir = stir
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[], None], Future[bool]]] = deque()
        self._over = False

    def ask(self, work: Callable[[], None]) -> bool:
        """Have `work` done and wait for it; what it raises is raised here.

        Returns:
            False if the engine has ended before.
        """
        done: Future[bool] = Future()
        with self._lock:
            if self._over:
                return False
            self._waiting.append((work, done))
        self._stir()
        return done.result()

    def receive(self) -> None:
        """Do what waits; the engine's call."""
        for work, done in self._taken():
            try:
                work()
            except BaseException as error:  # theirs, not the engine's
                done.set_exception(error)
            else:
                done.set_result(True)

    def close(self) -> None:
        """Refuse what waits, and whatever else comes; the engine's last call."""
        with self._lock:
            self._over = True
        for _, done in self._taken():
            done.set_result(False)

    def _taken(self) -> list[tuple[Callable[[], None], Future[bool]]]:
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken
