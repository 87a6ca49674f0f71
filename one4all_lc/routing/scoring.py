"""Whose question is it, and is it anybody's: two scores from exemplars, in numpy alone.

Class score: whose question it is, if it is anybody's. A *density*, the log-mean-exp of the cosines
between a question and an expert's exemplars, and a *probe*, ridge regression on the same cosines;
each as log-probabilities at the temperature that fits the exemplars held out, added. Bandwidths,
and whether one of the two is better alone, are chosen by the likelihood of the exemplars when each
is held out. Cosines are taken around the exemplars' mean: what all share does not tell them apart.

In-scope score: whether it is that expert's at all. The expert's best cosine and the density of all
exemplars, for what lies far from everything known is foreign, and a *guard*, a second probe that
has everyday questions and negatives as rows of no expert, for what lies near is not always one's
own. Each is brought to the mean and deviation that held-out exemplars have, and they are added, the
guard twice. An expert takes a question that reaches what the expert's own exemplars reach when
each is held out. (CLINC150, development rows, ten to fifty exemplars a domain: AUROC .009 to .021
over the best plain cosine, with either embedder; any two of the three give less for one of them.)

Language: an expert with exemplars in two languages shows which direction is language and nothing
else, the difference of its two means. That direction is removed, or a Persian question about the
weather would lie nearest to the one expert that has Persian exemplars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from one4all_lc.routing.calibration import sigmoid
from one4all_lc.routing.candidates import Near
from one4all_lc.routing.probe import Probe
from one4all_lc.routing.spaces import Array, Groups, Middle, log_softmax, unit, without

GUARD_WEIGHT = 2.0
POOL = 10
"""Experts whose exemplars are taken together."""


@dataclass(frozen=True)
class Scores:
    """What `Scorer.score` finds for a batch of q questions, c experts and n exemplars.

    Attributes:
        class_score: (q, c), whose question it is: log-probabilities before calibration.
        probability: (q, c), that it is that expert's if it is any expert's; rows sum to 1.
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
class Settings:
    """What is chosen by leaving exemplars out; kept when exemplars are added or removed.

    Attributes:
        bandwidth: Of the density.
        width: Of the probe's kernel.
        temperatures: Of density and probe; infinity leaves one out.
    """

    bandwidth: float
    width: float
    temperatures: tuple[float, float]


@dataclass(frozen=True)
class ClassScore:
    """Whose question it is.

    Attributes:
        settings: As chosen.
        middle: Around which cosines are taken.
        probe: Fitted on the exemplars.
        temperature: Of the sum, for probabilities.
    """

    settings: Settings
    middle: Middle
    probe: Probe
    temperature: float


@dataclass(frozen=True)
class InScope:
    """Whether it is an expert's question at all.

    Attributes:
        middle: Around which the guard's cosines are taken.
        foreign: (m, d) unit vectors, around that middle, of questions that are nobody's.
        guard: Fitted on the exemplars and those.
        spread: Bandwidth of the density: the deviation of the exemplars' cosines to each other.
        scales: Mean and deviation of best cosine, density and guard over held-out exemplars.
        sigmoid: Slope and offset of the probability, on scores less thresholds.
    """

    middle: Middle
    foreign: Array
    guard: Probe
    spread: float
    scales: tuple[tuple[float, float], ...]
    sigmoid: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True)
class Scorer:
    """Exemplars prepared for scoring, with everything that was fitted on them.

    Attributes:
        names: The c experts' names.
        owners: (n,) index into `names` for each exemplar.
        language: (k, d) orthonormal directions that carry language alone; k may be 0.
        vectors: (n, d) unit vectors without those directions.
        classes: The class score.
        scope: The in-scope score.
        thresholds: (c,) the least in-scope score of a question that an expert takes.
        groups: The exemplars of each expert.
    """

    names: tuple[str, ...]
    owners: NDArray[np.intp]
    language: Array
    vectors: Array
    classes: ClassScore
    scope: InScope
    thresholds: Array
    groups: Groups

    @classmethod
    def fit(
        cls,
        vectors: Array,
        labels: Sequence[str],
        languages: Sequence[str] | None = None,
        background: Array | None = None,
        target_retention: float = 0.95,
        negatives: Array | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Fit scores, temperature and thresholds.

        An expert with one exemplar has nothing to hold out: it takes the threshold of all experts.
        If no expert has two, a question must score higher than `target_retention` of the questions
        that are known to be another's: the other experts' exemplars and the background. A single
        exemplar without a background has threshold minus infinity.

        Args:
            vectors: (n, d) embeddings of the exemplars, n at least 1, of any length but zero.
            labels: The n exemplars' experts.
            languages: The n exemplars' languages; None takes them to be one.
            background: (m, d) embeddings of everyday questions, which usually are nobody's: those
                that lie among exemplars are left out.
            target_retention: The share of its own exemplars that an expert should take when each
                is held out; the rest sets the threshold.
            negatives: (k, d) embeddings of questions that are nobody's for certain.
            settings: Chosen before, for exemplars that were much the same; None chooses.

        Returns:
            The scorer, its experts in the order of their first exemplars.
        """
        from one4all_lc.routing.fitting import Exemplars, fit

        known = Exemplars.of(vectors, labels, languages, background, negatives)
        return cls(*fit(known, target_retention, settings))

    def score(self, queries: Array, near: Near | None = None) -> Scores:
        """Score a batch of question embeddings, (q, d).

        Args:
            queries: The embeddings.
            near: What each question is compared with; None compares with all exemplars.
        """
        free = unit(without(queries, self.language))
        similarity = near.products(free, self.vectors) if near else free @ self.vectors.T  # (q, n)
        logs = self._classes(free, similarity)
        in_scope = self._in_scope(free, similarity)
        slope, offset = self.scope.sigmoid
        return Scores(
            logs,
            np.exp(log_softmax(logs / self.classes.temperature)).astype("f4"),
            in_scope,
            sigmoid(slope * (in_scope - self.thresholds) + offset),
            similarity,
        )

    def _classes(self, free: Array, similarity: Array) -> Array:
        chosen = self.classes.settings
        cosines, centred = self.classes.middle.around(similarity, free)
        density = self.groups.density(cosines, chosen.bandwidth)
        probe = self.classes.probe
        value = probe.of_vectors(centred) if probe.linear else probe.of_cosines(cosines)
        return blended(density, value, chosen.temperatures)

    def _in_scope(self, free: Array, similarity: Array) -> Array:
        scope = self.scope
        if scope.guard.linear:
            guard = scope.guard.of_vectors(scope.middle.own(free))
        else:
            cosines, centred = scope.middle.around(similarity, free)
            rows = np.concatenate([cosines, centred @ scope.foreign.T], 1)
            guard = scope.guard.of_cosines(rows)
        best = self.groups.most(similarity)
        near = pooled(self.groups.density(similarity, scope.spread), scope.spread)
        return scaled((best, near[:, None], guard), scope.scales)


def blended(density: Array, probe: Array, temperatures: tuple[float, float]) -> Array:
    """Add density and probe, (q, c) each, as log-probabilities."""
    logs = [
        log_softmax(values / temperature)
        for values, temperature in zip((density, probe), temperatures, strict=True)
        if np.isfinite(temperature)
    ]
    return np.asarray(sum(logs[1:], logs[0]), "f4")


def pooled(density: Array, spread: float) -> Array:
    """Return the density of the nearest experts together, (q,): each counts alike.

    Of the nearest `POOL` alone, so that a thousand far ones do not add up to something near.
    """
    if density.shape[1] > POOL:
        density = np.partition(density, -POOL, axis=1)[:, -POOL:]
    top = density.max(1, keepdims=True)
    mean = np.exp((density - top) / np.float32(spread)).mean(1)
    return np.asarray(top[:, 0] + spread * np.log(mean), "f4")


def scaled(parts: Sequence[Array], scales: Sequence[tuple[float, float]]) -> Array:
    """Add best cosine, density and guard, (q, c) or (q, 1) each, after scaling them."""
    best, near, guard = (
        (part - mean) / deviation for part, (mean, deviation) in zip(parts, scales, strict=True)
    )
    return np.asarray(best + near + GUARD_WEIGHT * guard, "f4")
