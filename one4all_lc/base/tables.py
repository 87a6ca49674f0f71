"""Where a kernel finds the factors of the adapters that each token is computed with."""

import itertools
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from one4all_lc.base.compiled import lora
from one4all_lc.base.compiled.kernel import bits_of
from one4all_lc.base.compiled.lora_layout import DECODED, FIELDS, READ, READ_IN_TILES
from one4all_lc.base.compiled.lora_pairs import TOGETHER, WIDTH
from one4all_lc.base.compiled.tiles import multiplies_tiles
from one4all_lc.base.lora import Adapter, AdaptersById, Group, Mixture, Segment, members

_MOST = 256
"""Tables that are kept: weights chosen anew for each request make a mixture each."""


@dataclass(frozen=True)
class Target:
    """A group of linears that adapters add to.

    Attributes:
        layers: Module path and first output of each.
        in_pairs: Whether all widths are what a kernel takes that computes in pairs. The base
            decides that, not the adapters at hand: a row must not depend on its company.
    """

    layers: tuple[tuple[str, int], ...]
    in_pairs: bool

    @classmethod
    def of(cls, group: Group) -> "Target":
        """Describe a group."""
        layers = tuple((name, outputs.start) for name, outputs in members(group))
        widths = (group.in_features, *group.widths)
        return cls(layers, all(width % WIDTH == 0 for width in widths))


@dataclass(frozen=True, eq=False)
class Table:
    """The factor pairs of one mixture.

    Attributes:
        pairs: Shape (groups, pairs of a group, `FIELDS`), int64.
        adapters: Those of the mixture.
        factors: The tensors that it points to: theirs, or copies in the layout of the kernel. Ranks
            are filled up with zeros, since the kernel takes several at once.
        ranks: Of each group the largest, shape (groups,).
    """

    pairs: Tensor
    adapters: tuple[Adapter, ...]
    factors: tuple[Tensor, ...]
    ranks: Tensor

    def points_to(self, adapters: AdaptersById, mixture: Mixture) -> bool:
        """Whether it was made of these very adapters."""
        return all(
            adapters[identity] is adapter
            for (identity, _), adapter in zip(mixture, self.adapters, strict=True)
        )

    @property
    def place(self) -> tuple[int, int]:
        """Its address, and how many pairs it has for each group."""
        return self.pairs.data_ptr(), self.pairs.shape[1]

    @classmethod
    def of(cls, mixture: Mixture, adapters: AdaptersById, targets: Sequence[Target]) -> "Table":
        """Note where the factors of a mixture lie."""
        kept: list[Tensor] = []
        rows: list[list[tuple[int, ...]]] = []
        used = [(adapters[identity], bits_of(weight)) for identity, weight in mixture]
        for target in targets:
            row: list[tuple[int, ...]] = []
            for name, begin in target.layers:
                for adapter, weight in used:
                    pair = adapter.factors.get(name)
                    if pair is None:
                        continue
                    a = _readable(pair[0], in_pairs=target.in_pairs)
                    b = _readable(pair[1].t(), in_pairs=target.in_pairs)
                    kept += (a, b)
                    rank, width = b.shape
                    row.append((a.data_ptr(), b.data_ptr(), rank, begin, width, weight))
            rows.append(row)
        # Filled by numpy: hundreds of small tensors would hold up those who decode.
        pairs = np.zeros((len(rows), max(map(len, rows)), FIELDS), np.int64)
        for i, row in enumerate(rows):
            if row:
                pairs[i, : len(row)] = row
        ranks = torch.from_numpy(pairs[:, :, 2].max(1, initial=0))
        return cls(torch.from_numpy(pairs), tuple(item for item, _ in used), tuple(kept), ranks)


def _readable(factor: Tensor, *, in_pairs: bool) -> Tensor:
    """Return a factor (rank, features) as the kernel reads it: in pairs it takes several ranks."""
    lacking = -factor.shape[0] % TOGETHER if in_pairs else 0
    if lacking:
        factor = functional.pad(factor, (0, 0, 0, lacking))
    return factor if factor.is_contiguous() else factor.contiguous()


@dataclass(frozen=True, eq=False)
class TableSegment:
    """All tokens of a forward, each with the factors of its own row's mixture.

    Attributes:
        tokens: Which of the forward's tokens.
        units: As `lora.add` takes them.
        tables: Those that the units point to.
        groups: Number and largest rank of each group that adapters add to, and whether it is
            computed in pairs, by its first module path.
        reads: Whether there are tokens of prompts.
    """

    tokens: slice
    units: Tensor
    tables: tuple[Table, ...]
    groups: Mapping[str, tuple[int, int, bool]]
    reads: bool

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        group = self.groups.get(name)
        if group is None:
            return
        # A kernel reads what it is told to.
        if not x.shape[0] == y.shape[0] == self.tokens.stop:
            msg = f"{name} is given {x.shape[0]} tokens of {self.tokens.stop}"
            raise IndexError(msg)
        number, rank, in_pairs = group
        lora.add(x.contiguous(), y, self.units, number, rank, in_pairs=in_pairs, reads=self.reads)


class Tables:
    """The tables of the mixtures that were used last.

    Args:
        groups: The base's groups of linears.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._targets = [Target.of(group) for group in groups]
        self._tables: OrderedDict[Mixture, Table] = OrderedDict()

    @property
    def memory_bytes(self) -> int:
        """Bytes that it keeps besides the adapters as loaded: none that count."""
        return 0

    def segments(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> list[Segment]:
        """Return what adapters add to the tokens of a forward; see `planning.Planner.plan`."""
        units: list[tuple[int, ...]] = []
        tables: list[Table] = []
        first = 0
        reading = READ_IN_TILES if multiplies_tiles() else READ
        phases = [int(i >= decoding) for i in range(len(rows))]
        for (mixture, read), same in itertools.groupby(
            zip(rows, phases, strict=True), lambda item: (item[0][1], item[1])
        ):
            after = first + sum(count for (count, _), _ in same)
            if mixture:
                table = self._table(mixture, adapters)
                tables.append(table)
                step = reading if read else DECODED
                units += [
                    (token, min(step, after - token), *table.place, read)
                    for token in range(first, after, step)
                ]
            first = after
        if not units:
            return []
        ranks = torch.stack([table.ranks for table in tables]).amax(0).tolist()
        groups = {
            target.layers[0][0]: (i, rank, target.in_pairs)
            for i, (target, rank) in enumerate(zip(self._targets, ranks, strict=True))
            if rank
        }
        reads = decoding < len(rows)
        return [TableSegment(slice(0, first), torch.tensor(units), tuple(tables), groups, reads)]

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        for mixture in list(self._tables):
            if not all(identity in identities for identity, _ in mixture):
                del self._tables[mixture]

    def _table(self, mixture: Mixture, adapters: AdaptersById) -> Table:
        known = self._tables.pop(mixture, None)
        # An adapter that has left memory and come back lies elsewhere; its old copy shall go.
        if known is None or not known.points_to(adapters, mixture):
            known = Table.of(mixture, adapters, self._targets)
        self._tables[mixture] = known
        if len(self._tables) > _MOST:  # segments hold those that they use
            self._tables.popitem(last=False)
        return known
