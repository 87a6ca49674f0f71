"""What adapters add to the tokens of one forward, whatever their number.

Each token gets what its own row's mixture of adapters makes of it:

    y += weight * (x @ A.T) @ B.T

A forward has a plan: segments of neighbouring tokens, and how each is computed. On a CPU a kernel
of our own takes each token's factors (`base.tables`); elsewhere the adapters of rows that decode
are laid under each other, and prompts are read with the factors as loaded (`base.packing`).
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Mixture = tuple[tuple[str, float], ...]
"""What one row is made of: (adapter identity, weight) pairs; the base alone is `()`."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory.

    Attributes:
        identity: Hash of weights and scales.
        factors: Module path to (A of shape (rank, in), scaled B of shape (out, rank)). The elements
            of one rank lie side by side in both, if no kernel shall copy them.
        head: Of an encoder expert the head's tensors by name, float32.
    """

    identity: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        factors = sum(a.nbytes + b.nbytes for a, b in self.factors.values())
        return factors + sum(tensor.nbytes for tensor in self.head.values())

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


def members(group: Group) -> Iterator[tuple[str, slice]]:
    """Yield each layer of a group and which of the group's outputs are its own."""
    ends = itertools.accumulate(group.widths)
    for name, width, end in zip(group.names, group.widths, ends, strict=True):
        yield name, slice(end - width, end)


class Segment(Protocol):
    """Neighbouring tokens, and what adapters add to them."""

    @property
    def tokens(self) -> slice:
        """Which of the forward's tokens, rows one after another."""

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""


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
