"""Where cosines are taken: language removed, around a middle, and densities of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

ENOUGH = 5
"""Exemplars of one expert in one language from which its mean says anything."""


def language_directions(
    vectors: Array, owners: NDArray[np.intp], languages: Sequence[str]
) -> Array:
    """Find the directions (k, d) in which languages differ within one expert."""
    spoken = np.array(languages)
    differences = []
    for index in np.unique(owners):
        mine = owners == index
        values, counts = np.unique(spoken[mine], return_counts=True)
        means = [
            vectors[mine & (spoken == value)].mean(0)
            for value, count in sorted(zip(values, counts, strict=True), key=lambda x: -x[1])
            if count >= ENOUGH
        ]
        differences += [mean - means[0] for mean in means[1:]]
    if not differences:
        return np.zeros((0, vectors.shape[1]), "f4")
    # Two experts that know the same two languages find nearly one direction twice: the singular
    # value decomposition orders them, and what explains little is their subjects, not language.
    _, strength, directions = np.linalg.svd(np.stack(differences), full_matrices=False)
    return np.asarray(directions[strength > 0.5 * strength[0]], "f4")


def without(vectors: Array, directions: Array) -> Array:
    """Return vectors (q, d) without their parts along orthonormal directions (k, d)."""
    return np.asarray(vectors - (vectors @ directions.T) @ directions, "f4")


def unit(vectors: Array) -> Array:
    """Return vectors scaled to length 1; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), "f4")


@dataclass(frozen=True)
class Middle:
    """A point to take cosines around.

    The products of unit vectors are computed once and serve every middle: (q - m)(v - m) is
    qv - qm - vm + mm. Centring the exemplars anew for each would read all of them again, which is
    what a question costs when there are many.

    Attributes:
        point: (d,).
        along: (n,) products of the exemplars with it.
        lengths: (n,) their distances from it.
    """

    point: Array
    along: Array
    lengths: Array

    @classmethod
    def of(cls, vectors: Array, point: Array) -> Self:
        """Prepare unit vectors (n, d)."""
        return cls(point, vectors @ point, _lengths(vectors, point))

    def around(self, products: Array, queries: Array) -> tuple[Array, Array]:
        """Turn products (q, n) of unit vectors (q, d) and exemplars into cosines around it.

        Returns:
            The cosines, and the questions themselves around it as unit vectors (q, d).
        """
        moved = queries - self.point
        lengths = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)
        shift = self.point @ self.point - queries @ self.point
        cosines = (products - self.along + shift[:, None]) / lengths / self.lengths
        return np.asarray(cosines, "f4"), np.asarray(moved / lengths, "f4")

    def own(self, vectors: Array) -> Array:
        """Return unit vectors (n, d) around it, as unit vectors."""
        return unit(vectors - self.point)


def _lengths(vectors: Array, point: Array) -> Array:
    return np.asarray(np.maximum(np.linalg.norm(vectors - point, axis=1), 1e-6), "f4")


class Groups:
    """The columns of each expert, for reductions over its exemplars.

    Args:
        owners: (n,) the expert of each column, 0 to c - 1.
        count: c.
    """

    def __init__(self, owners: NDArray[np.intp], count: int) -> None:
        self.order = np.argsort(owners, kind="stable")
        self.sizes = np.bincount(owners, minlength=count)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.owners = owners[self.order]
        self.sorted = bool((np.diff(self.order) == 1).all())

    def of(self, columns: Array) -> Array:
        """Return the columns (q, n) expert by expert."""
        return columns if self.sorted else columns[:, self.order]

    def most(self, columns: Array) -> Array:
        """Return each expert's largest value, (q, c)."""
        return np.asarray(np.maximum.reduceat(self.of(columns), self.starts, 1), "f4")

    def density(self, cosines: Array, bandwidth: float) -> Array:
        """Return each expert's log-mean-exp of cosines (q, n), in cosine, (q, c).

        A smooth maximum that does not grow with the number of exemplars; -inf stands for one that
        is held out.
        """
        grouped = self.of(cosines)
        top = np.maximum.reduceat(grouped, self.starts, 1)
        top = np.where(np.isfinite(top), top, np.float32(-1))  # all held out: as far as can be
        raised = np.exp((grouped - top[:, self.owners]) / np.float32(bandwidth))
        total = np.add.reduceat(raised, self.starts, 1)
        held_out = np.add.reduceat(~np.isfinite(grouped), self.starts, 1)
        count = np.maximum(self.sizes - held_out, 1)
        return np.asarray(top + bandwidth * np.log(np.maximum(total, 1e-9) / count), "f4")


def log_softmax(logits: Array) -> Array:
    """Return log-probabilities of logits (q, c)."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), "f4")
