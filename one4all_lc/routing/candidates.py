"""Many exemplars: Chroma's index names candidates, and only their experts are scored exactly.

A question's products with all exemplars are one pass over their vectors: 2 ms for 20,000 of 384
numbers on one core, which no index betters. Beyond `EXACT` exemplars the index is asked for some
near ones, and the products are taken with all exemplars of the experts that own these, so that
their scores are what they would be. Every other expert's exemplars get the product with their mean,
and deviations from it of the size that they have: what is far counts little, but in a narrow cone a
thousand experts together do count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from one4all_lc.routing.exemplars import ExemplarSet, ExemplarStore
    from one4all_lc.routing.scoring import Scorer

Array = NDArray[np.float32]
Ints = NDArray[np.intp]

EXACT = 20_000
"""Exemplars up to which every one is compared."""
ASKED = 100
"""Exemplars that the index is asked for: Chroma's own breadth of search, beyond which it misses."""


@dataclass(frozen=True)
class Near:
    """What each of q questions is compared with.

    Attributes:
        rows: For each question the exemplars to compare with exactly, as sorted indices.
        owners: (n,) the expert of each exemplar.
        means: (c, d) the mean of each expert's unit vectors, language removed.
        deviations: (n,) by which exemplars' products deviate from their mean's.
    """

    rows: Sequence[Ints]
    owners: Ints
    means: Array
    deviations: Array

    def products(self, free: Array, vectors: Array) -> Array:
        """Return products (q, n) of questions (q, d) with exemplars (n, d), unit vectors.

        A question without candidates is compared with all.
        """
        middles = free @ self.means.T  # (q, c)
        # Unit vectors vary across their mean, so only what of the question is across it counts.
        lengths = np.maximum((self.means**2).sum(1), 1e-9)
        across = np.sqrt(np.maximum(1 - middles**2 / lengths, 0))
        found = middles[:, self.owners] + across[:, self.owners] * self.deviations
        for question, mine in enumerate(self.rows):
            chosen = mine if len(mine) else np.arange(len(vectors))
            found[question, chosen] = vectors[chosen] @ free[question]
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Candidates:
    """The index of a set of exemplars.

    Attributes:
        store: Where the index is.
        rows: Hash of a text to the indices of the exemplars with that text.
        owners: (n,) index of each exemplar's expert.
        means: (c, d) the mean of each expert's unit vectors, language removed.
        deviations: (n,) by which exemplars' products deviate from their mean's.
    """

    store: "ExemplarStore"
    rows: dict[str, list[int]]
    owners: Ints
    means: Array
    deviations: Array

    @classmethod
    def of(cls, store: "ExemplarStore", known: "ExemplarSet", scorer: "Scorer") -> Self | None:
        """Return the index; None if there are so few exemplars that each is compared."""
        if len(known.experts) <= EXACT:
            return None
        from one4all_lc.routing.exemplars import digest

        rows: dict[str, list[int]] = {}
        for index, item in enumerate(known.exemplars):
            rows.setdefault(digest(item.text), []).append(index)
        sums = np.zeros((len(scorer.names), scorer.vectors.shape[1]), np.float32)
        np.add.at(sums, scorer.owners, scorer.vectors)
        counts = np.bincount(scorer.owners, minlength=len(sums))[:, None]
        means = np.asarray(sums / counts, np.float32)
        return cls(store, rows, scorer.owners, means, _deviations(scorer.owners, means))

    def of_questions(self, vectors: Array) -> Near:
        """Return what questions (q, d) are compared with."""
        found = self.store.near(vectors, ASKED)
        return Near(
            [self._all_of(keys) for keys in found], self.owners, self.means, self.deviations
        )

    def _all_of(self, keys: Sequence[str]) -> Ints:
        near = [index for key in keys for index in self.rows.get(key, ())]
        return np.flatnonzero(np.isin(self.owners, np.unique(self.owners[near])))


def _deviations(owners: Ints, means: Array) -> Array:
    """Return deviations (n,) of products from those with the experts' means (c, d).

    As of normal quantiles: unit vectors of mean m vary by (1 - mm) / (d - 1) in any direction
    across it, as far as nothing else is known.
    """
    spread = np.sqrt(np.maximum(1 - (means**2).sum(1), 0) / max(means.shape[1] - 1, 1))
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=len(means))
    place = np.empty(len(owners))
    place[order] = np.concatenate([np.arange(size) for size in sizes])
    levels = (place + 0.5) / sizes[owners]
    quantiles = np.array([NormalDist().inv_cdf(level) for level in levels])
    return np.asarray(quantiles * spread[owners], np.float32)
