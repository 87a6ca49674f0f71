"""Whose question is it, and is it anybody's: two scores from exemplars, in numpy alone.

Both are *densities*: a log-mean-exp of the cosines between a question and an expert's exemplars.
Each expert is scored by itself, so that many exemplars do not outweigh few. They differ in the
point that cosines are taken around, for embedders such as e5 put every text into a narrow cone.

Class: around the mean of the experts, since what they all share does not tell them apart.

Abstention: around the mean of everyday questions (`background.py`), since what the experts share
does tell them from the rest. An expert takes a question if this *in-scope score* reaches what the
expert's own exemplars score when each is held out in turn. (Three domains of 45 exemplars drawn
eight times from a mixture of twelve: AUROC 0.97, where the experts' mean gives 0.96 and the best
plain cosine 0.89; at 95 % retention 89 % of foreign questions are refused, not 78 % or 70 %.)

Language: an expert with exemplars in two languages shows which direction is language and nothing
else, the difference of its two means. That direction is removed, or a Persian question about the
weather would lie nearest to the one expert that has Persian exemplars.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from one4all_lc.routing.candidates import FLOOR, products

Array = NDArray[np.float32]

BANDWIDTH = 0.07
"""Width of the density in cosine: best on average over CLINC150 and a mixture of domains."""
SHRINKAGE = 20
"""Exemplars at which an expert's own threshold counts as much as the one of all experts."""
ENOUGH = 5
"""Exemplars of one expert in one language from which its mean says anything."""


@dataclass(frozen=True)
class Scores:
    """What `Scorer.score` finds for a batch of q questions, c experts and n exemplars.

    Attributes:
        class_score: (q, c), whose question it is.
        probability: (q, c), calibrated softmax of the class score; rows sum to 1.
        in_scope: (q, c), compared with the experts' thresholds.
        in_scope_probability: (q, c), that the question is within that expert's domain.
        similarity: (q, n), cosine to every exemplar, language removed.
    """

    class_score: Array
    probability: Array
    in_scope: Array
    in_scope_probability: Array
    similarity: Array


@dataclass(frozen=True)
class Scorer:
    """Exemplars prepared for scoring, with everything that was fitted on them.

    Attributes:
        names: The c experts' names.
        owners: (n,) index into `names` for each exemplar.
        language: (k, d) orthonormal directions that carry language alone; k may be 0.
        vectors: (n, d) unit vectors without those directions.
        centre: (d,) the mean of the experts' means, around which classes are told apart.
        origin: (d,) the mean of the background, around which the in-scope score is taken.
        temperature: Of the softmax over densities.
        thresholds: (c,) the least in-scope score of a question that an expert takes.
    """

    names: tuple[str, ...]
    owners: NDArray[np.intp]
    language: Array
    vectors: Array
    centre: Array
    origin: Array
    temperature: float
    thresholds: Array

    @classmethod
    def fit(
        cls,
        vectors: Array,
        labels: Sequence[str],
        languages: Sequence[str] | None = None,
        background: Array | None = None,
        target_retention: float = 0.95,
        negatives: Array | None = None,
    ) -> Self:
        """Fit centres, temperature and thresholds.

        An expert with one exemplar has nothing to hold out: it takes the threshold of all experts.
        If no expert has two, a question must score higher than `target_retention` of the questions
        that are known to be another's: the other experts' exemplars and the background. A single
        exemplar without a background has threshold minus infinity.

        Args:
            vectors: (n, d) embeddings of the exemplars, n at least 1, of any length but zero.
            labels: The n exemplars' experts.
            languages: The n exemplars' languages; None takes them to be one.
            background: (m, d) embeddings of everyday questions; None takes the experts' mean, or
                for a single expert, whose mean is its own subject, nothing away.
            target_retention: The share of its own exemplars that an expert should take when each
                is held out; the rest sets the threshold.
            negatives: (k, d) embeddings of questions that are nobody's.

        Returns:
            The scorer, its experts in the order of their first exemplars.
        """
        names = tuple(dict.fromkeys(labels))
        owners = np.array([names.index(label) for label in labels])
        language = _language_directions(vectors, owners, languages or ["en"] * len(labels))
        free = _unit(_without(vectors, language))
        middle = np.zeros((0, free.shape[1]), "f4")
        if background is not None:
            middle = _unit(_without(background, language))
        centre = np.stack([free[owners == i].mean(0) for i in range(len(names))]).mean(0)
        origin = centre if len(names) > 1 else np.zeros_like(centre)
        origin = middle.mean(0) if len(middle) else origin
        untuned = np.full(len(names), -np.inf, "f4")
        draft = cls(names, owners, language, free, centre, origin, 1.0, untuned)
        scores, held_out = draft.leave_one_out()
        if not len(held_out):
            return replace(draft, thresholds=draft._over_others(middle, target_retention))
        mine = owners[held_out]
        thresholds = _thresholds(scores.in_scope, mine, target_retention)
        return replace(
            draft, temperature=_fit_temperature(scores.class_score, mine), thresholds=thresholds
        )

    def score(self, queries: Array, rows: Sequence[NDArray[np.intp]] | None = None) -> Scores:
        """Score a batch of question embeddings, (q, d).

        Args:
            queries: The embeddings.
            rows: For each question the exemplars to compare with; None compares with all.
        """
        return self._score(_unit(_without(queries, self.language)), rows=rows)

    def leave_one_out(self) -> tuple[Scores, NDArray[np.intp]]:
        """Score each exemplar as if it were not there.

        Returns:
            The scores of the m exemplars whose expert has another one, and their indices (m,).
        """
        counts = np.bincount(self.owners, minlength=len(self.names))
        held_out = np.flatnonzero(counts[self.owners] > 1)
        return self._score(self.vectors[held_out], held_out), held_out

    def _score(
        self,
        free: Array,
        held_out: NDArray[np.intp] | None = None,
        rows: Sequence[NDArray[np.intp]] | None = None,
    ) -> Scores:
        similarity = products(free, self.vectors, rows)  # (q, n)
        far = None if rows is None else similarity == FLOOR
        density = self._density(free, self.centre, held_out, far)
        in_scope = self._density(free, self.origin, held_out, far)
        probability = np.exp(_log_softmax(density / self.temperature)).astype(np.float32)
        return Scores(density, probability, in_scope, probability, similarity)

    def _density(
        self,
        free: Array,
        middle: Array,
        held_out: NDArray[np.intp] | None,
        far: NDArray[np.bool_] | None = None,
    ) -> Array:
        """Score questions (q, d) by every expert, (q, c), with cosines around `middle`."""
        cosines = _unit(free - middle) @ _unit(self.vectors - middle).T
        if far is not None:
            cosines[far] = FLOOR
        if held_out is not None:
            cosines[np.arange(len(held_out)), held_out] = -np.inf
        groups = [self.owners == index for index in range(len(self.names))]
        return np.stack([_log_mean_exp(cosines[:, group]) for group in groups], 1)

    def _over_others(self, middle: Array, share: float) -> Array:
        """Return thresholds (c,) over a share of the questions that belong to somebody else."""
        others = np.concatenate([self.vectors, middle])
        scores = self._density(others, self.origin, None)
        owners = np.concatenate([self.owners, np.full(len(middle), -1)])
        foreign = [scores[owners != index, index] for index in range(len(self.names))]
        return np.array([np.quantile(f, share) if len(f) else -np.inf for f in foreign], "f4")


def _language_directions(
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


def _without(vectors: Array, directions: Array) -> Array:
    return np.asarray(vectors - (vectors @ directions.T) @ directions, "f4")


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), "f4")


def _log_mean_exp(cosines: Array) -> Array:
    """Smooth maximum over exemplars, (q, n) to (q,), in cosine; -inf stands for a held-out one."""
    top = cosines.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, -1.0)  # all held out: as far as a cosine goes
    count = np.maximum(np.isfinite(cosines).sum(1), 1)
    total = np.exp((cosines - top) / BANDWIDTH).sum(1)
    return np.asarray(top[:, 0] + BANDWIDTH * np.log(np.maximum(total, 1e-9) / count), "f4")


def _thresholds(in_scope: Array, owners: NDArray[np.intp], retention: float) -> Array:
    """Return quantiles (c,) of held-out scores (m, c): the expert's own, shrunk to everybody's."""
    own = in_scope[np.arange(len(owners)), owners]
    everybody = np.quantile(own, 1 - retention)
    thresholds = np.full(in_scope.shape[1], everybody, "f4")
    for index in np.unique(owners):
        mine = own[owners == index]
        trust = len(mine) / (len(mine) + SHRINKAGE)
        thresholds[index] = trust * np.quantile(mine, 1 - retention) + (1 - trust) * everybody
    return thresholds


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), "f4")


def _fit_temperature(density: Array, owners: NDArray[np.intp]) -> float:
    """Find the temperature of the best leave-one-out log-likelihood.

    Exemplars that all fall right would drive it to zero and every probability to 1. Platt's
    smoothed targets prevent that: one more question, evenly spread over the experts.
    Source: Platt, Probabilistic outputs for support vector machines, 1999.
    """
    count, experts = density.shape
    targets = np.full((count, experts), 1 / experts / (count + 1))
    targets[np.arange(count), owners] += count / (count + 1)
    grid = np.geomspace(0.003, 1.0, 60)
    losses = [-(targets * _log_softmax(density / step)).sum() for step in grid]
    return float(grid[int(np.argmin(losses))])
