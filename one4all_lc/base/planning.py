"""The plan of a forward: which tokens get what from which adapters."""

import itertools
from collections.abc import Container, Sequence
from typing import Protocol, Self

from one4all_lc.base.compiled.kernel import runs
from one4all_lc.base.linears import Linears
from one4all_lc.base.lora import AdaptersById, Group, Mixture, Plan, ReadingSegment, Segment
from one4all_lc.base.packing import DEFAULT_PACKED_BYTES, Packer, measured_overhead
from one4all_lc.base.tables import Tables


class DecodingAdapters(Protocol):
    """A way to compute what adapters add to rows of one token."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that it keeps besides the adapters as loaded."""

    def segments(self, rows: Sequence[Mixture], adapters: AdaptersById) -> list[Segment]:
        """Return what adapters add to the first so many tokens of a forward, a row each."""

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""


class Planner:
    """Makes plans, and keeps the last one: while nobody joins or leaves, steps are alike.

    Args:
        groups: The base's groups of linears.
        decoding: How rows that decode are computed.
    """

    def __init__(self, groups: Sequence[Group], decoding: DecodingAdapters) -> None:
        self._groups, self._decoding = groups, decoding
        self._last: tuple[object, Plan] = (None, Plan())
        self._planned = frozenset[str]()

    @classmethod
    def of(cls, linears: Linears, packed_bytes: int = DEFAULT_PACKED_BYTES) -> Self:
        """Return one that uses our own kernels where those run.

        Args:
            linears: The base's.
            packed_bytes: Elsewhere adapters are packed, and kept so up to this many bytes.
        """
        groups, device, dtype = linears.groups, linears.device, linears.kernels.dtype
        if runs(device, dtype):
            return cls(groups, Tables(groups))
        return cls(groups, Packer(groups, measured_overhead(groups, device, dtype), packed_bytes))

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
            self._last = (key, self._plan(rows, adapters, decoding))
            self._planned = frozenset(name for _, mixture in rows for name, _ in mixture)
        return self._last[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes that are kept besides the adapters as loaded."""
        return self._decoding.memory_bytes

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        self._decoding.keep(identities)
        if not all(identity in identities for identity in self._planned):
            self._last, self._planned = (None, Plan()), frozenset()

    def _plan(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> Plan:
        segments = self._decoding.segments([mixture for _, mixture in rows[:decoding]], adapters)
        first = decoding
        for mixture, prompts in itertools.groupby(rows[decoding:], lambda row: row[1]):
            tokens = slice(first, first + sum(count for count, _ in prompts))
            first = tokens.stop
            if mixture:
                segments.append(ReadingSegment.of(tokens, mixture, adapters, self._groups))
        return Plan(decoding, tuple(segments))
