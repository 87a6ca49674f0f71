"""Adapters laid under each other for the rows that decode, and the plans that use them."""

import itertools
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from one4all_lc.base.kernels import WHOLE, Kernels, LazyPair
from one4all_lc.base.lora import (
    Adapter,
    AdaptersById,
    DecodingSegment,
    Group,
    LoraTerm,
    Mixture,
    Plan,
    ReadingSegment,
    Segment,
)

DEFAULT_PACKED_BYTES = 1 << 29
"""Bytes of packings that are kept: the running batch's, and those of the batches before."""


class Packing:
    """Adapters laid under each other for every group of linears.

    Args:
        adapters: Each once, at least one.
        groups: The base's groups of linears.
        kernels: How weights are laid out on this machine.
    """

    def __init__(
        self, adapters: Sequence[Adapter], groups: Sequence[Group], kernels: Kernels
    ) -> None:
        self.column = {adapter.identity: i for i, adapter in enumerate(adapters)}
        self._like = next(iter(adapters[0].factors.values()))[0]
        self._terms: dict[str, LoraTerm] = {}
        for group in groups:
            term = _pack(adapters, group, kernels)
            if term is not None:
                self._terms[group.names[0]] = term

    @property
    def memory_bytes(self) -> int:
        """Bytes of what is laid out, or will be in the first forward."""
        return sum(term.pair.memory_bytes for term in self._terms.values())

    def segment(self, tokens: slice, rows: Sequence[Mixture]) -> DecodingSegment:
        """Return the segment of rows of one token each."""
        if len(self.column) == 1 and all(
            len(mixture) == 1 and mixture[0][1] == 1 for mixture in rows
        ):
            return DecodingSegment(tokens, self._terms, {})
        mixing = torch.zeros(len(rows), len(self.column))
        for row, mixture in enumerate(rows):
            for identity, weight in mixture:
                mixing[row, self.column[identity]] += weight
        mixing = mixing.to(self._like.device, self._like.dtype)
        owners = {term.owners for term in self._terms.values()}
        weights = {item: mixing[:, list(item)] for item in owners}
        return DecodingSegment(tokens, self._terms, weights)


def _pack(adapters: Sequence[Adapter], group: Group, kernels: Kernels) -> LoraTerm | None:
    """Lay the adapters' factors for one group under each other; None if no adapter has any."""
    # Of each factor: its adapter, the first of its outputs, A and B.
    placed = [
        (i, sum(group.widths[:member]), *adapter.factors[name])
        for i, adapter in enumerate(adapters)
        for member, name in enumerate(group.names)
        if name in adapter.factors
    ]
    owners = tuple(i for i, _, a, _ in placed for _ in range(a.shape[0]))
    if not owners:
        return None
    missing = -len(owners) % WHOLE  # ranks of zeros up to a width that every kernel takes

    def factors() -> tuple[Tensor, Tensor]:
        rank, like = len(owners) + missing, placed[0][2]
        a_all = like.new_zeros(rank, like.shape[1])
        b_all = like.new_zeros(sum(group.widths), rank)
        column = 0
        for _, first, a, b in placed:
            columns = slice(column, column + a.shape[0])
            a_all[columns] = a
            b_all[first : first + b.shape[0], columns] = b
            column = columns.stop
        return a_all, b_all

    size = (len(owners) + missing) * (placed[0][2].shape[1] + sum(group.widths))
    return LoraTerm(LazyPair(kernels, factors, size), owners + owners[-1:] * missing)


class Packer:
    """Makes plans, and keeps the packings that they used last.

    Args:
        groups: The base's groups of linears.
        kernels: How weights are laid out on this machine, and what a product costs.
        budget: Bytes; packings beyond it are dropped, least recently used first, but for those of
            the running forward.
    """

    def __init__(
        self, groups: Sequence[Group], kernels: Kernels, budget: int = DEFAULT_PACKED_BYTES
    ) -> None:
        self._groups, self._kernels, self._budget = groups, kernels, budget
        self._packings: OrderedDict[frozenset[str], Packing] = OrderedDict()
        self._last: tuple[object, Plan] = (None, Plan())
        self._planned = frozenset[str]()

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
        if key != self._last[0]:  # while nobody joins or leaves, a step is like the one before
            self._last = (key, self._plan(rows, adapters, decoding))
            self._planned = _identities(mixture for _, mixture in rows)
        return self._last[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the packings that it keeps."""
        return sum(packing.memory_bytes for packing in list(self._packings.values()))

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        for key in list(self._packings):
            if not all(identity in identities for identity in key):
                del self._packings[key]
        if not all(identity in identities for identity in self._planned):
            self._last, self._planned = (None, Plan()), frozenset()

    def _plan(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> Plan:
        segments: list[Segment] = []
        used: set[Packing] = set()
        first = 0
        for part in self._decoding_parts([mixture for _, mixture in rows[:decoding]], adapters):
            tokens = slice(first, first + len(part))
            first = tokens.stop
            identities = _identities(part)
            if identities:
                packing = self._packing(identities, adapters)
                used.add(packing)
                segments.append(packing.segment(tokens, part))
        for mixture, prompts in itertools.groupby(rows[decoding:], lambda row: row[1]):
            tokens = slice(first, first + sum(count for count, _ in prompts))
            first = tokens.stop
            if mixture:
                segments.append(ReadingSegment.of(tokens, mixture, adapters, self._groups))
        self._make_room(used)
        return Plan(decoding, tuple(segments))

    def _decoding_parts(
        self, rows: Sequence[Mixture], adapters: AdaptersById
    ) -> Iterator[list[Mixture]]:
        """Cut decoding rows into segments where one more costs less than wasted arithmetic."""

        def cost(tokens: int, identities: frozenset[str]) -> float:
            rank = sum(adapters[identity].rank for identity in identities)
            return tokens * rank + (self._kernels.rank_overhead if identities else 0)

        part: list[Mixture] = []
        held = frozenset[str]()
        for row in rows:
            own = _identities([row])
            apart = cost(len(part), held) + cost(1, own)
            if part and cost(len(part) + 1, held | own) > apart:
                yield part
                part, held = [], frozenset()
            part.append(row)
            held |= own
        if part:
            yield part

    def _packing(self, identities: frozenset[str], adapters: AdaptersById) -> Packing:
        """Find a packing that holds these adapters and not many others, or make one."""
        # Adapters that just became idle may stay for a while: packing moves megabytes.
        fits = [
            key for key in self._packings if identities <= key and len(key) <= 2 * len(identities)
        ]
        key = min(fits, key=len, default=identities)
        if key not in self._packings:
            members = [adapters[identity] for identity in sorted(key)]
            self._packings[key] = Packing(members, self._groups, self._kernels)
        self._packings.move_to_end(key)
        return self._packings[key]

    def _make_room(self, used: Container[Packing]) -> None:
        """Drop the packings used longest ago, so that the budget holds with those in use."""
        total = sum(packing.memory_bytes for packing in self._packings.values() if packing in used)
        for key, packing in reversed(list(self._packings.items())):
            if packing not in used:
                total += packing.memory_bytes
                if total > self._budget:
                    del self._packings[key]


def _identities(rows: Iterable[Mixture]) -> frozenset[str]:
    return frozenset(identity for mixture in rows for identity, _ in mixture)
