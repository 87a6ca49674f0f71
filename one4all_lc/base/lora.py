"""LoRA for many adapters in one forward: two products a group of linears, whatever their number.

The active adapters' A lie under each other, and so do their scaled B:

    h  = x @ A_all.T      (tokens, R)    R = the sum of the active adapters' ranks
    h *= weights          (tokens, R)    zero for adapters that the token's row does not use
    y += h @ B_all.T      (tokens, out)

A base row is a row of zeros, and a mixture of several adapters in one row costs nothing extra.
Layers that read one input share h; in B_all each fills the columns of its own outputs.

Every adapter spends its arithmetic on every token of a segment. While rows are few that costs less
than calling twice as often. So decoding neighbours share a segment if that is cheaper, by the fixed
cost of a product measured on this machine. A prompt has many tokens, and the sets of adapters that
prompts would be packed with change from step to step: they are read with the factors as loaded.

On a CPU in bfloat16 a row comes out with the same bits whoever shares its forward: each kernel sums
a row in one order, and what other adapters contribute is an exact zero.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor
from torch.nn import functional

from one4all_lc.base.kernels import LazyPair

Mixture = tuple[tuple[str, float], ...]
"""What one row is made of: (adapter identity, weight) pairs; the base alone is `()`."""


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
        pair: The adapters' A and B.
        owners: For each of the R columns, which of the packing's adapters it belongs to.
    """

    pair: LazyPair
    owners: tuple[int, ...]


class Segment(Protocol):
    """Neighbouring tokens, and what adapters add to them."""

    @property
    def tokens(self) -> slice:
        """Which of the forward's tokens, rows one after another."""

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return y (tokens, out) with what the adapters make of x (tokens, in) in one group."""


@dataclass(frozen=True, eq=False)
class DecodingSegment:
    """Tokens that are decoded with one packing, a row each.

    Attributes:
        tokens: Which of the forward's tokens.
        terms: By the group's first module path.
        weights: By a term's owners, shape (tokens, R); empty if every adapter counts once in full.
    """

    tokens: slice
    terms: Mapping[str, LoraTerm]
    weights: Mapping[tuple[int, ...], Tensor]

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return y (tokens, out) with what the adapters make of x (tokens, in) in one group."""
        term = self.terms.get(name)
        if term is None:
            return y
        pair = term.pair.made
        h = pair.shrink(x)
        if self.weights:
            h *= self.weights[term.owners]
        return y.add_(pair.expand(h))


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
            first = 0
            for name, width in zip(group.names, group.widths, strict=True):
                outputs = slice(first, first + width)
                first += width
                for identity, weight in mixture:
                    pair = adapters[identity].factors.get(name)
                    if pair is not None:
                        factors.setdefault(group.names[0], []).append((outputs, *pair, weight))
        return cls(tokens, factors)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return y (tokens, out) with what the adapters make of x (tokens, in) in one group."""
        for outputs, a, b, weight in self.factors.get(name, ()):
            h = functional.linear(x, a)
            if weight != 1:
                h *= weight
            y[:, outputs] += functional.linear(h, b)
        return y


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
