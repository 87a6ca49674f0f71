"""What adapters add to the tokens of one forward, whatever their number.

Each token gets what its own row's mixture of adapters makes of it:

    y += weight * (x @ A.T) @ B.T

A forward has a plan: segments of neighbouring tokens, and how each is computed. Prompts have many
tokens, and are read with the factors as loaded (here). Rows that decode have one token each: a
kernel of our own takes each row's factors (`base.tables`), or, where that does not run, all active
adapters are laid under each other (`base.packing`).
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor
from torch.nn import functional

Mixture = tuple[tuple[str, float], ...]
"""What one row is made of: (adapter identity, weight) pairs; the base alone is `()`."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory, ready to be packed.

    Attributes:
        identity: Hash of weights and scales.
        factors: Module path to (A of shape (rank, in), scaled B of shape (out, rank)). The elements
            of one rank lie side by side in both, if no kernel shall copy them.
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
    """Linear layers of one input: their module paths, its width and those of their outputs."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    in_features: int


class Segment(Protocol):
    """Neighbouring tokens, and what adapters add to them."""

    @property
    def tokens(self) -> slice:
        """Which of the forward's tokens, rows one after another."""

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""


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

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        for outputs, a, b, weight in self.factors.get(name, ()):
            h = functional.linear(x, a)
            if weight != 1:
                h *= weight
            y[:, outputs] += functional.linear(h, b)


@dataclass(frozen=True, eq=False)
class Plan:
    """What the adapters add in one forward; never changed once made.

    Attributes:
        decoding: The first so many tokens are decoded, the others read.
        segments: Those of the tokens that adapters add something to.
    """

    decoding: int = 0
    segments: tuple[Segment, ...] = ()

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        for segment in self.segments:
            part = segment.tokens
            if part.stop - part.start == x.shape[0]:
                segment.add(name, x, y)
            else:
                segment.add(name, x[part], y[part])


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
