"""Where a kernel finds the factors of the adapters that each token is computed with."""

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from one4all_lc.base.compiled import lora
from one4all_lc.base.compiled.kernel import bits_of
from one4all_lc.base.lora import AdaptersById, Group, Mixture, Segment


@dataclass(frozen=True, eq=False)
class Table:
    """The factor pairs of one mixture.

    Attributes:
        pairs: Shape (groups, pairs of a group, `lora.FIELDS`), int64.
        factors: The tensors that it points to.
        ranks: Of each group the largest, shape (groups,).
    """

    pairs: Tensor
    factors: tuple[Tensor, ...]
    ranks: Tensor

    @classmethod
    def of(cls, mixture: Mixture, adapters: AdaptersById, groups: Sequence[Group]) -> "Table":
        """Note where the factors of a mixture lie."""
        kept: list[Tensor] = []
        rows: list[list[tuple[int, ...]]] = []
        for group in groups:
            firsts = itertools.accumulate(group.widths, initial=0)
            row: list[tuple[int, ...]] = []
            for (name, width), first in zip(
                zip(group.names, group.widths, strict=True), firsts, strict=False
            ):
                for identity, weight in mixture:
                    pair = adapters[identity].factors.get(name)
                    if pair is None:
                        continue
                    a, b = pair[0].contiguous(), pair[1].t().contiguous()
                    kept += [a, b]
                    place = (a.shape[0], first, width, bits_of(weight))
                    row.append((a.data_ptr(), b.data_ptr(), *place))
            rows.append(row)
        pairs = torch.zeros(len(rows), max(map(len, rows)), lora.FIELDS, dtype=torch.long)
        for i, row in enumerate(rows):
            if row:
                pairs[i, : len(row)] = torch.tensor(row)
        return cls(pairs, tuple(kept), pairs[:, :, 2].amax(1))


@dataclass(frozen=True, eq=False)
class TableSegment:
    """All tokens of a forward, each with the factors of its own row's mixture.

    Attributes:
        tokens: Which of the forward's tokens.
        units: As `lora.add` takes them.
        tables: Those that the units point to.
        groups: Number and largest rank of each group that adapters add to, by its first module
            path.
    """

    tokens: slice
    units: Tensor
    tables: tuple[Table, ...]
    groups: Mapping[str, tuple[int, int]]

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to y (tokens, out) what the adapters make of x (tokens, in) in one group."""
        group = self.groups.get(name)
        if group is not None:
            assert x.shape[0] == y.shape[0] == self.tokens.stop  # a kernel reads what it is told to
            lora.add(x.contiguous(), y, self.units, *group)


class Tables:
    """The tables of the mixtures that were used since their adapters were loaded.

    Args:
        groups: The base's groups of linears.
    """

    memory_bytes = 0
    """The factors are those that were loaded."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._numbers = [(group.names[0], i) for i, group in enumerate(groups)]
        self._tables: dict[Mixture, Table] = {}

    def segments(
        self, rows: Sequence[tuple[int, Mixture]], adapters: AdaptersById, decoding: int
    ) -> list[Segment]:
        """Return what adapters add to the tokens of a forward.

        Args:
            rows: Each (number of tokens, mixture), one after another.
            adapters: Every adapter that the rows name, by identity.
            decoding: Unused: tokens are computed alike, decoded or read.
        """
        units: list[tuple[int, int, int, int]] = []
        tables: list[Table] = []
        first = 0
        for mixture, same in itertools.groupby(rows, lambda row: row[1]):
            after = first + sum(count for count, _ in same)
            if mixture:
                table = self._table(mixture, adapters)
                tables.append(table)
                pairs = table.pairs.shape[1]
                units += [
                    (token, min(lora.TOKENS, after - token), table.pairs.data_ptr(), pairs)
                    for token in range(first, after, lora.TOKENS)
                ]
            first = after
        if not units:
            return []
        ranks = torch.stack([table.ranks for table in tables]).amax(0).tolist()
        groups = {
            name: (i, rank) for (name, i), rank in zip(self._numbers, ranks, strict=True) if rank
        }
        return [TableSegment(slice(0, first), torch.tensor(units), tuple(tables), groups)]

    def keep(self, identities: Container[str]) -> None:
        """Let go of adapters that are not among these any more."""
        for mixture in list(self._tables):
            if not all(identity in identities for identity, _ in mixture):
                del self._tables[mixture]

    def _table(self, mixture: Mixture, adapters: AdaptersById) -> Table:
        if mixture not in self._tables:
            self._tables[mixture] = Table.of(mixture, adapters, self._groups)
        return self._tables[mixture]
