"""LoRA for many adapters in one forward: two products a group of linears, whatever their number.

The active adapters' A lie under each other, and so do their scaled B:

    h  = x @ A_all.T      (tokens, R)    R = the sum of the active adapters' ranks
    h *= weights          (tokens, R)    zero for adapters that the token's row does not use
    y += h @ B_all.T      (tokens, out)

A base row is a row of zeros, and a mixture of several adapters in one row costs nothing extra.
Layers that read one input share h; in B_all each fills the columns of its own outputs.

Every adapter spends its arithmetic on every token of a segment. While rows are few that costs less
than calling twice as often. So decoding neighbours share a segment if that is cheaper, by the fixed
cost of a product measured on this machine; every prompt has its own adapters' alone.

On a CPU in bfloat16 a row comes out with the same bits whoever shares its forward: oneDNN sums each
row in one order, and what other adapters contribute is an exact zero.
"""

import contextlib
import functools
import itertools
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from one4all_lc.base.kernels import WHOLE, Kernels, LoraLayouts

Mixture = tuple[tuple[str, float], ...]
"""What one row is made of: (adapter identity, weight) pairs; the base alone is `()`."""

DEFAULT_PACKED_BYTES = 1 << 29
"""Bytes of packings that are kept: the running batch's, and single adapters' for prompts."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory, ready to be packed.

    Attributes:
        identity: Hash of weights and scales.
        factors: Module path to (A of shape (rank, in), scaled B of shape (out, rank)).
    """

    identity: str
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())

    @functools.cached_property
    def rank(self) -> int:
        """The largest rank of its factors."""
        return max(a.shape[0] for a, _ in self.factors.values())


class AdaptersById(Protocol):
    """Whatever finds an adapter in memory by its identity."""

    def __getitem__(self, identity: str, /) -> Adapter: ...


class Group(Protocol):
    """Linear layers of one input: their module paths and the widths of their outputs."""

    names: tuple[str, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LoraTerm:
    """What one packing adds in one group.

    Attributes:
        layouts: The adapters' A and B.
        owners: For each of the R columns, which of the packing's adapters it belongs to.
    """

    layouts: LoraLayouts
    owners: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring tokens that are computed with one packing.

    Attributes:
        tokens: Which of the forward's tokens, rows one after another.
        decoding: Whether they are decoded, not read.
        terms: By the group's first module path.
        weights: By a term's owners, shape (tokens, R); empty if every adapter counts once in full.
    """

    tokens: slice
    decoding: bool
    terms: Mapping[str, LoraTerm]
    weights: Mapping[tuple[int, ...], Tensor]

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return y (tokens, out) with what the adapters make of x (tokens, in) in one group."""
        term = self.terms.get(name)
        if term is None:
            return y
        pair = term.layouts.pair(decoding=self.decoding)
        h = pair.shrink(x)
        if self.weights:
            h *= self.weights[term.owners]
        return pair.expand.plus(h, y)


@dataclass(frozen=True, eq=False)
class Plan:
    """What the adapters add in one forward; never changed once made.

    Attributes:
        decoding: The first so many tokens are decoded, the others read.
        segments: Those of the tokens that adapters add something to.
    """

    decoding: int = 0
    segments: tuple[Segment, ...] = ()

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return y (tokens, out) with what the adapters make of x (tokens, in) in one group."""
        for segment in self.segments:
            part = segment.tokens
            if part.stop - part.start == x.shape[0]:
                return segment.add(name, x, y)
            y[part] = segment.add(name, x[part], y[part])
        return y


class PlanCell:
    """Where the layers find the plan of the forward that is running.

    One thread runs forwards; it sets the plan with `using`, which cannot leave it behind.
    """

    def __init__(self) -> None:
        self.plan = Plan()

    @contextlib.contextmanager
    def using(self, plan: Plan) -> Iterator[None]:
        """Apply `plan` to every forward inside the block."""
        self.plan = plan
        try:
            yield
        finally:
            self.plan = Plan()


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
        """Bytes of the layouts that the forwards have needed so far."""
        return sum(term.layouts.memory_bytes for term in self._terms.values())

    def bytes_of(self, *, decoding: bool) -> int:
        """Return the bytes of one of its layouts, made or not."""
        return sum(term.layouts.bytes_of(decoding=decoding) for term in self._terms.values())

    def segment(
        self, tokens: slice, rows: Sequence[tuple[int, Mixture]], *, decoding: bool
    ) -> Segment:
        """Return the segment of `rows`, each (number of tokens, mixture)."""
        if len(self.column) == 1 and all(m and m[0][1] == 1 for _, m in rows):
            return Segment(tokens, decoding, self._terms, {})
        mixing = torch.zeros(len(rows), len(self.column))
        for row, (_, mixture) in enumerate(rows):
            for identity, weight in mixture:
                mixing[row, self.column[identity]] += weight
        mixing = mixing.repeat_interleave(torch.tensor([count for count, _ in rows]), 0)
        mixing = mixing.to(self._like.device, self._like.dtype)
        owners = {term.owners for term in self._terms.values()}
        weights = {item: mixing[:, list(item)] for item in owners}
        return Segment(tokens, decoding, self._terms, weights)


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
    return LoraTerm(LoraLayouts(kernels, factors, size), owners + owners[-1:] * missing)


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
        return self._last[1]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the packings that it keeps."""
        return sum(packing.memory_bytes for packing in list(self._packings.values()))

    def keep(self, identities: Container[str]) -> None:
        """Drop the packings of adapters that are not among these any more."""
        for key in list(self._packings):
            if not all(identity in identities for identity in key):
                del self._packings[key]
                self._last = (None, Plan())

    def _plan(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> Plan:
        segments, first = [], 0
        used: dict[tuple[Packing, bool], None] = {}
        parts = [(True, part) for part in self._decoding_parts(rows[:decoding], adapters)]
        parts += [
            (False, list(part)) for _, part in itertools.groupby(rows[decoding:], lambda r: r[1])
        ]
        for decodes, part in parts:
            tokens = slice(first, first + sum(count for count, _ in part))
            first = tokens.stop
            identities = _identities(part)
            if identities:
                packing = self._packing(identities, adapters)
                used[packing, decodes] = None
                segments.append(packing.segment(tokens, part, decoding=decodes))
        self._make_room(used)
        return Plan(decoding, tuple(segments))

    def _decoding_parts(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById
    ) -> Iterator[list[tuple[int, Mixture]]]:
        """Cut decoding rows into segments where one more costs less than wasted arithmetic.

        Prompts are always cut where the mixture changes: they have many tokens, and the sets of
        adapters that they would be packed with change from step to step.
        """

        def cost(tokens: int, identities: frozenset[str]) -> float:
            rank = sum(adapters[identity].rank for identity in identities)
            return tokens * rank + (self._kernels.rank_overhead if identities else 0)

        part: list[tuple[int, Mixture]] = []
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

    def _make_room(self, used: Iterable[tuple[Packing, bool]]) -> None:
        """Drop the packings that are used longest ago, so that the budget holds with those in use.

        Args:
            used: Packings of the coming forward, and whether they decode in it.
        """
        total = sum(packing.bytes_of(decoding=decodes) for packing, decodes in used)
        kept = {packing for packing, _ in used}
        for key, packing in reversed(list(self._packings.items())):
            if packing not in kept:
                total += packing.memory_bytes
                if total > self._budget:
                    del self._packings[key]


def _identities(rows: Sequence[tuple[int, Mixture]]) -> frozenset[str]:
    return frozenset(identity for _, mixture in rows for identity, _ in mixture)
