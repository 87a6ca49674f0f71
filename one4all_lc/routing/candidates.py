"""Many exemplars: Chroma's index names candidates, and only their experts are scored exactly.

A question's products with all exemplars are one pass over their vectors: 2 ms for 20,000 of 384
numbers on one core, which no index betters. Beyond `EXACT` exemplars the index is asked for some
near ones, and the products are taken with all exemplars of the experts that own these, so that
their scores are what they would be; all others' products are taken for `FLOOR`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from one4all_lc.routing.exemplars import ExemplarSet, ExemplarStore

Array = NDArray[np.float32]
Ints = NDArray[np.intp]

EXACT = 20_000
"""Exemplars up to which every one is compared."""
ASKED = 100
"""Exemplars that the index is asked for: Chroma's own breadth of search, beyond which it misses."""
FLOOR = -1.0
"""Product of a question with an exemplar of no candidate: as far as a cosine goes."""


@dataclass(frozen=True)
class Candidates:
    """The index of a set of exemplars.

    Attributes:
        store: Where the index is.
        rows: Hash of a text to the indices of the exemplars with that text.
        owners: (n,) index of each exemplar's expert.
    """

    store: "ExemplarStore"
    rows: dict[str, list[int]]
    owners: Ints

    @classmethod
    def of(cls, store: "ExemplarStore", known: "ExemplarSet") -> Self | None:
        """Return the index; None if there are so few exemplars that each is compared."""
        if len(known.experts) <= EXACT:
            return None
        from one4all_lc.routing.exemplars import digest

        rows: dict[str, list[int]] = {}
        for index, item in enumerate(known.exemplars):
            rows.setdefault(digest(item.text), []).append(index)
        names = {name: index for index, name in enumerate(dict.fromkeys(known.experts))}
        return cls(store, rows, np.array([names[name] for name in known.experts]))

    def of_questions(self, vectors: Array) -> list[Ints]:
        """Return for each question (q, d) the exemplars of its candidates, as sorted indices."""
        found = self.store.near(vectors, ASKED)
        return [self._all_of(keys) for keys in found]

    def _all_of(self, keys: Sequence[str]) -> Ints:
        near = [index for key in keys for index in self.rows.get(key, ())]
        return np.flatnonzero(np.isin(self.owners, np.unique(self.owners[near])))


def products(free: Array, vectors: Array, rows: Sequence[Ints] | None = None) -> Array:
    """Return the products (q, n) of questions (q, d) with exemplars (n, d).

    Args:
        free: The questions' unit vectors.
        vectors: The exemplars' unit vectors.
        rows: For each question the exemplars to compare with; None compares with all. A question
            without any is compared with all.
    """
    if rows is None:
        return np.asarray(free @ vectors.T, np.float32)
    found = np.full((len(free), len(vectors)), FLOOR, np.float32)
    for question, mine in enumerate(rows):
        chosen = mine if len(mine) else np.arange(len(vectors))
        found[question, chosen] = vectors[chosen] @ free[question]
    return found
