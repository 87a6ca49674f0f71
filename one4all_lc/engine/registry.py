"""One engine a base: whoever has the base finds its engine, in a process that unpickles it too."""

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch

from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.base.residency import Residency
from one4all_lc.errors import InvalidInput


class PerBase:
    """What engines have in common that own a base and a thread.

    Attributes:
        base: The shared base.
        residency: The adapters in memory.
    """

    _of: ClassVar[dict[SharedBase, Any]]
    _making: ClassVar[threading.RLock]

    base: SharedBase
    residency: Residency
    _thread: threading.Thread

    def __init_subclass__(cls) -> None:
        if PerBase in cls.__bases__:  # an engine of the same kind shares its parent's
            cls._of, cls._making = {}, threading.RLock()

    @classmethod
    def of(cls, base: SharedBase) -> Self:
        """Return the engine of a base, made if it has none."""
        with cls._making:
            engine = cls._of.get(base)
            if engine is None or engine.closed:
                engine = cls(base)  # type: ignore[call-arg]
            return engine

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: copies of a model share the engine."""
        return self

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """Pickle as the place of its base: whoever loads it gets the engine of that process."""
        base = self.base
        dtype = str(base.dtype).removeprefix("torch.")
        place = (base.facts.id, base.quantization, str(base.device), dtype)
        return _engine_of, (type(self), *place)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests; so it is in a forked process, without its thread."""
        raise NotImplementedError

    def close(self, *, drain: bool = False) -> None:
        """Stop."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _made_for(self, base: SharedBase, **limits: int) -> Iterator[None]:
        """Make an engine inside the block, the only one of its base.

        Raises:
            InvalidInput: The base has an open engine, or a limit is under one.
        """
        for name, value in limits.items():
            if value < 1:
                msg = f"{name} is {value}: an engine takes at least one request at a time."
                raise InvalidInput(msg)
        with self._making:
            if (other := self._of.get(base)) is not None and not other.closed:
                kind = type(self).__name__
                msg = f"{base.facts.id!r} has an engine: use {kind}.of(base), or close that one."
                raise InvalidInput(msg)
            self.base = base
            yield
            self._of[base] = self
        atexit.register(self.close)

    def _ended(self) -> None:
        """Wait for the thread, and let the base have another engine."""
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.residency.close()
        atexit.unregister(self.close)
        with self._making:
            if self._of.get(self.base) is self:
                del self._of[self.base]


def _engine_of(
    kind: type[PerBase], base: str, quantization: Quantization, device: str, dtype: str
) -> PerBase:
    """Return the engine of a base, which is loaded if this process has not loaded it."""
    loaded = SharedBase.load(
        base, quantization=quantization, device=device, dtype=getattr(torch, dtype)
    )
    return kind.of(loaded)
