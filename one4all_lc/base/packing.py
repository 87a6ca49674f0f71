"""What adapters add where no kernel takes each token's own: few products, whatever their number.

For rows that decode, the active adapters' A lie under each other, and so do their scaled B:

    h  = x @ A_all.T      (rows, R)    R = the sum of the active adapters' ranks
    h *= weights          (rows, R)    zero for adapters that the row does not use
    y += h @ B_all.T      (rows, out)

A base row is a row of zeros, and a mixture of several adapters in one row costs nothing extra.
Layers that read one input share h; in B_all each fills the columns of its own outputs.

Every adapter spends its arithmetic on every row of a segment. While rows are few that costs less
than calling twice as often. So neighbours share a segment if that is cheaper, by the fixed cost of
a product measured on this machine. A prompt has many tokens, and the sets of adapters that prompts
would be packed with change from step to step: they are read with the factors as loaded.
"""

import itertools
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from one4all_lc.base.kernels import Dense, seconds
from one4all_lc.base.lora import Adapter, AdaptersById, Group, Mixture, Segment, members

DEFAULT_PACKED_BYTES = 1 << 29
"""Bytes of packings that are kept: the running batch's, and those of the batches before."""


@dataclass(frozen=True, eq=False)
class LoraTerm:
    """What one packing adds in one group.

    Attributes:
        a: The adapters' A, shape (R, in).
        b: Their B, shape (out, R).
        owners: For each of the R columns, which of the packing's adapters it belongs to.
    """

    a: Tensor
    b: Tensor
    owners: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedSegment:
    """Rows that are decoded with one packing, a token each.

    Attributes:
        tokens: Which of the forward's tokens.
        terms: By the group's first module path.
        weights: By a term's owners, shape (tokens, R); empty if every adapter counts once in full.
    """

    tokens: slice
    terms: Mapping[str, LoraTerm]
    weights: Mapping[tuple[int, ...], Tensor]

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        term = self.terms.get(name)
        if term is None:
            return
        h = functional.linear(x, term.a)
        if self.weights:
            h *= self.weights[term.owners]
        y += functional.linear(h, term.b)


@dataclass(frozen=True, eq=False)
class ReadingSegment:
    """Tokens of prompts that are read with one mixture, by the adapters' factors as loaded.

    Attributes:
        tokens: Which of the forward's tokens.
        factors: By the group's first module path: outputs, A, B and weight of every factor.
    """

    tokens: slice
    factors: Mapping[str, Sequence[tuple[slice, Tensor, Tensor, float]]]

    @classmethod
    def of(
        cls, tokens: slice, mixture: Mixture, adapters: AdaptersById, groups: Sequence[Group]
    ) -> Self:
        """Collect the factors of a mixture."""
        factors: dict[str, list[tuple[slice, Tensor, Tensor, float]]] = {}
        for group in groups:
            for name, outputs in members(group):
                for identity, weight in mixture:
                    pair = adapters[identity].factors.get(name)
                    if pair is not None:
                        factors.setdefault(group.names[0], []).append((outputs, *pair, weight))
        return cls(tokens, factors)

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        for outputs, a, b, weight in self.factors.get(name, ()):
            h = functional.linear(x, a)
            if weight != 1:
                h *= weight
            y[:, outputs] += functional.linear(h, b)


class Packing:
    """Adapters laid under each other for every group of linears.

    Args:
        adapters: Each once, at least one.
        groups: The base's groups of linears.
    """

    def __init__(self, adapters: Sequence[Adapter], groups: Sequence[Group]) -> None:
        self.column = {adapter.identity: i for i, adapter in enumerate(adapters)}
        self._like = next(iter(adapters[0].factors.values()))[0]
        self._terms: dict[str, LoraTerm] = {}
        for group in groups:
            term = _pack(adapters, group)
            if term is not None:
                self._terms[group.names[0]] = term

    @property
    def memory_bytes(self) -> int:
        """Bytes of what is laid out."""
        return sum(term.a.nbytes + term.b.nbytes for term in self._terms.values())

    def segment(self, tokens: slice, rows: Sequence[Mixture]) -> PackedSegment:
        """Return the segment of rows of one token each."""
        if len(self.column) == 1 and all(
            len(mixture) == 1 and mixture[0][1] == 1 for mixture in rows
        ):
            return PackedSegment(tokens, self._terms, {})
        mixing = torch.zeros(len(rows), len(self.column))
        for row, mixture in enumerate(rows):
            for identity, weight in mixture:
                mixing[row, self.column[identity]] += weight
        mixing = mixing.to(self._like.device, self._like.dtype)
        owners = {term.owners for term in self._terms.values()}
        weights = {item: mixing[:, list(item)] for item in owners}
        return PackedSegment(tokens, self._terms, weights)


def _pack(adapters: Sequence[Adapter], group: Group) -> LoraTerm | None:
    """Lay the adapters' factors for one group under each other; None if no adapter has any."""
    # Of each factor: its adapter, the first of its outputs, A and B.
    placed = [
        (i, outputs.start, *adapter.factors[name])
        for i, adapter in enumerate(adapters)
        for name, outputs in members(group)
        if name in adapter.factors
    ]
    owners = tuple(i for i, _, a, _ in placed for _ in range(a.shape[0]))
    if not owners:
        return None
    rank, like = len(owners), placed[0][2]
    a_all = like.new_zeros(rank, like.shape[1])
    b_all = like.new_zeros(sum(group.widths), rank)
    column = 0
    for _, first, a, b in placed:
        columns = slice(column, column + a.shape[0])
        a_all[columns] = a
        b_all[first : first + b.shape[0], columns] = b
        column = columns.stop
    return LoraTerm(a_all, b_all, owners)


class Packer:
    """Cuts the tokens of a forward into segments, and keeps the packings that it used last.

    Args:
        groups: The base's groups of linears.
        budget: Bytes; packings beyond it are dropped, least recently used first, but for those of
            the running forward.
    """

    def __init__(self, groups: Sequence[Group], budget: int = DEFAULT_PACKED_BYTES) -> None:
        self._groups, self._budget = groups, budget
        self._rank_overhead: float | None = None  # what one segment more costs, in rows times rank
        self._packings: OrderedDict[frozenset[str], Packing] = OrderedDict()

    def segments(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> list[Segment]:
        """Return what adapters add to the tokens of a forward; see `planning.Planner.plan`."""
        segments = self._decoding([mixture for _, mixture in rows[:decoding]], adapters)
        first = decoding
        for mixture, prompts in itertools.groupby(rows[decoding:], lambda row: row[1]):
            tokens = slice(first, first + sum(count for count, _ in prompts))
            first = tokens.stop
            if mixture:
                segments.append(ReadingSegment.of(tokens, mixture, adapters, self._groups))
        return segments

    def _decoding(self, rows: Sequence[Mixture], adapters: AdaptersById) -> list[Segment]:
        segments: list[Segment] = []
        used: set[Packing] = set()
        first = 0
        for part in self._parts(rows, adapters):
            tokens = slice(first, first + len(part))
            first = tokens.stop
            identities = _identities(part)
            if identities:
                packing = self._packing(identities, adapters)
                used.add(packing)
                segments.append(packing.segment(tokens, part))
        self._make_room(used)
        return segments

    @property
    def memory_bytes(self) -> int:
        """Bytes of the packings that it keeps."""
        return sum(packing.memory_bytes for packing in list(self._packings.values()))

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        for key in list(self._packings):
            if not all(identity in identities for identity in key):
                del self._packings[key]

    def _parts(self, rows: Sequence[Mixture], adapters: AdaptersById) -> Iterator[list[Mixture]]:
        """Cut rows into segments where one more costs less than wasted arithmetic."""
        if self._rank_overhead is None and any(rows):
            like = next(iter(adapters[next(filter(None, rows))[0][0]].factors.values()))[0]
            self._rank_overhead = measured_overhead(self._groups, like.device, like.dtype)
        overhead = self._rank_overhead or 0.0

        def cost(tokens: int, identities: frozenset[str]) -> float:
            rank = sum(adapters[identity].rank for identity in identities)
            return tokens * rank + (overhead if identities else 0)

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
            self._packings[key] = Packing(members, self._groups)
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


@torch.inference_mode()
def measured_overhead(groups: Sequence[Group], device: torch.device, dtype: torch.dtype) -> float:
    """Return for how many rows times rank the fixed cost of a segment's products would pay."""
    shapes = sorted({(sum(group.widths), group.in_features) for group in groups})[:8]

    def cost(rows: int, rank: int) -> float:
        products, inputs = [], []
        for out_features, in_features in shapes:
            for out, width in ((rank, in_features), (out_features, rank)):
                products.append(Dense(torch.full((out, width), 0.01, dtype=dtype, device=device)))
                inputs.append(torch.ones(rows, width, dtype=dtype, device=device))
        return seconds(products, inputs, runs=7)

    least, most = cost(1, 16), cost(32, 256)
    slope = (most - least) / (32 * 256 - 16)
    return least / max(slope, 1e-12)
