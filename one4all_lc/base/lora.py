"""LoRA for many adapters in one forward: three operations a linear, whatever their number.

The active adapters' A lie side by side and their scaled B one under the other:

    h  = x @ A_all        (rows, length, R)   R = the sum of the active adapters' ranks
    h *= weights          (rows, 1, R)        zero for adapters that the row does not use
    y += h @ B_all        (rows, length, out)

A base row is a row of zeros, and a mixture of several adapters in one row costs nothing extra.

On a CPU in bfloat16 a row comes out with the same bits whoever shares its forward: the products run
over whole rows in one order, and what other adapters contribute is an exact zero. Only the product
of a single row takes another kernel, whose last bits differ, so a lone row is computed twice over.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Mixture = tuple[tuple[str, float], ...]
"""What one row is made of: (adapter identity, weight) pairs; the base alone is `()`."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory, ready to be packed.

    Attributes:
        identity: Hash of weights and scales.
        factors: Module path to (A of shape (in, rank), scaled B of shape (rank, out)).
    """

    identity: str
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


class AdaptersById(Protocol):
    """Whatever finds an adapter in memory by its identity."""

    def __getitem__(self, identity: str, /) -> Adapter: ...


@dataclass(frozen=True, eq=False)
class LoraTerm:
    """What one linear layer adds in one forward.

    Attributes:
        a: Shape (in, R).
        b: Shape (R, out).
        weights: Shape (rows, 1, R).
    """

    a: Tensor
    b: Tensor
    weights: Tensor


Plan = Mapping[str, LoraTerm]
"""Module path to its term, for one forward; never changed once made."""


class PlanCell:
    """Where the layers find the plan of the forward that is running.

    One thread runs forwards; it sets the plan with `using`, which cannot leave it behind.
    """

    def __init__(self) -> None:
        self.plan: Plan = {}

    @contextlib.contextmanager
    def using(self, plan: Plan) -> Iterator[None]:
        """Apply `plan` to every forward inside the block."""
        self.plan = plan
        try:
            yield
        finally:
            self.plan = {}


class LoraLinear(nn.Module):
    """A linear layer of the base, quantized or not, and what the plan adds to it."""

    def __init__(self, base: nn.Module, name: str, cell: PlanCell) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, length, in) to (rows, length, out)."""
        y: Tensor = self.base(x)
        term = self._cell.plan.get(self._name)
        if term is None:
            return y
        lone = x.shape[0] * x.shape[1] == 1
        h = (x.repeat(2, 1, 1) if lone else x) @ term.a
        h *= term.weights
        delta = h @ term.b
        return y.add_(delta[:1] if lone else delta)


def attach(model: nn.Module, linears: Sequence[str]) -> PlanCell:
    """Put a LoraLinear in the place of each named layer; a second call finds the first one's.

    Args:
        model: The base; changed in place.
        linears: Module paths.

    Returns:
        The cell through which plans reach the layers.
    """
    cell = getattr(model, "_one4all_cell", None)
    if isinstance(cell, PlanCell):
        return cell
    cell = PlanCell()
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, LoraLinear(getattr(owner, leaf), name, cell))
    model._one4all_cell = cell  # type: ignore[assignment]
    return cell


class Packing:
    """A set of adapters laid side by side, from which plans for any rows are made.

    Args:
        adapters: The active adapters, each once.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._column = {adapter.identity: i for i, adapter in enumerate(adapters)}
        self._packed: dict[str, tuple[Tensor, Tensor, tuple[int, ...]]] = {}
        for name in {name for adapter in adapters for name in adapter.factors}:
            parts = [
                (i, *adapter.factors[name])
                for i, adapter in enumerate(adapters)
                if name in adapter.factors
            ]
            # The adapter of each of the R columns: layers that agree in it share their weights.
            owners = tuple(i for i, a, _ in parts for _ in range(a.shape[1]))
            a_all = torch.cat([a for _, a, _ in parts], 1)
            b_all = torch.cat([b for _, _, b in parts], 0)
            self._packed[name] = (a_all, b_all, owners)

    @property
    def identities(self) -> frozenset[str]:
        """The adapters that it holds."""
        return frozenset(self._column)

    def plan(self, rows: Sequence[Mixture]) -> Plan:
        """Return the plan for a forward whose row i is made of `rows[i]`."""
        if not any(rows):
            return {}
        mixing = torch.zeros(len(rows), len(self._column))
        for row, mixture in enumerate(rows):
            for identity, weight in mixture:
                mixing[row, self._column[identity]] = weight
        weights: dict[tuple[int, ...], Tensor] = {}
        plan: dict[str, LoraTerm] = {}
        for name, (a, b, owners) in self._packed.items():
            if owners not in weights:
                weights[owners] = mixing[:, None, list(owners)].to(a.device, a.dtype)
            plan[name] = LoraTerm(a, b, weights[owners])
        return plan


class Packer:
    """Keeps the last packing, and packs anew only when it does not fit what is asked."""

    def __init__(self) -> None:
        self._packing = Packing([])

    def plan(self, rows: Sequence[Mixture], adapters: AdaptersById) -> Plan:
        """Return the plan for `rows`.

        Args:
            rows: One mixture a row.
            adapters: Every adapter that the rows name, by identity.
        """
        needed = {identity for mixture in rows for identity, _ in mixture}
        held = self._packing.identities
        # Adapters that just became idle may stay for a while: packing moves megabytes.
        if not needed <= held or len(held) > 2 * max(1, len(needed)):
            self._packing = Packing([adapters[identity] for identity in sorted(needed)])
        return self._packing.plan(rows)
