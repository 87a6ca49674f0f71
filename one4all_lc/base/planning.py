"""The plan of a forward: which tokens get what from which adapters."""

from collections.abc import Container, Sequence
from typing import Protocol, Self

from one4all_lc.base.linears import Linears
from one4all_lc.base.lora import AdaptersById, Mixture, Plan, Segment
from one4all_lc.base.packing import DEFAULT_PACKED_BYTES, Packer
from one4all_lc.base.tables import Tables


class Way(Protocol):
    """A way to compute what adapters add."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that it keeps besides the adapters as loaded."""

    def segments(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> list[Segment]:
        """Return what adapters add to the tokens of a forward."""

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""


class Planner:
    """Makes plans, and keeps the last one: while nobody joins or leaves, steps are alike.

    Args:
        way: How adapters are computed on this machine.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._last: tuple[object, Plan] = (None, Plan())
        self._planned = frozenset[str]()

    @classmethod
    def of(cls, linears: Linears, packed_bytes: int = DEFAULT_PACKED_BYTES) -> Self:
        """Return one that uses our own kernels where those run.

        Args:
            linears: The base's.
            packed_bytes: Elsewhere adapters are packed, and kept so up to this many bytes.
        """
        if linears.compiled:
            return cls(Tables(linears.groups))
        return cls(Packer(linears.groups, packed_bytes))

    def plan(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int = 0
    ) -> Plan:
        """Return the plan of a forward.

        Args:
            rows: Each (number of tokens, mixture), one after another.
            adapters: Every adapter that the rows name, by identity.
            decoding: The first so many rows have one token each, which is decoded.
        """
        key = (tuple(rows), decoding)
        if key != self._last[0]:
            segments = self._way.segments(rows, adapters, decoding)
            self._last = (key, Plan(decoding, tuple(segments)))
            self._planned = frozenset(name for _, mixture in rows for name, _ in mixture)
        return self._last[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes that are kept besides the adapters as loaded."""
        return self._way.memory_bytes

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        self._way.keep(identities)
        if not all(identity in identities for identity in self._planned):
            self._last, self._planned = (None, Plan()), frozenset()
