"""Fits a `Scorer`: what is chosen is chosen by exemplars that are held out, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from one4all_lc.routing.calibration import sigmoid_of, temperature_of, thresholds_of
from one4all_lc.routing.probe import Probe, membership
from one4all_lc.routing.scoring import (
    ClassScore,
    InScope,
    Settings,
    blended,
    pooled,
    scaled,
)
from one4all_lc.routing.spaces import Array, Groups, Middle, language_directions, unit, without

LET_IN = 0.01
"""The share of known foreign questions that may be taken."""
BANDWIDTHS = (0.03, 0.05, 0.07, 0.1)
WIDTHS = (0.3, 0.5, 0.8)
RIDGE = 0.05
GUARD_WIDTH, GUARD_RIDGE = 0.5, 0.1
ENOUGH = 20
"""Negatives of the user from which they alone show what is asked that is nobody's."""
HELD_OUT = 400_000
"""Scores of held-out exemplars, experts times exemplars, beyond which a sample of them does."""
NEVER = float("inf")
CAUTION = 0.1
"""By how much one of density and probe alone must fit better: with few exemplars it is luck."""


@dataclass(frozen=True)
class Exemplars:
    """What there is to learn from.

    Attributes:
        names: The c experts' names.
        owners: (n,) index into `names`.
        language: (k, d) directions of language.
        vectors: (n, d) unit vectors without those directions.
        foreign: (m, d) the same of questions that are nobody's.
        certain: How many of these, the last, the user has named.
        middle: (d,) the middle of what people ask; zero without a background.
    """

    names: tuple[str, ...]
    owners: NDArray[np.intp]
    language: Array
    vectors: Array
    foreign: Array
    certain: int
    middle: Array

    @classmethod
    def of(
        cls,
        vectors: Array,
        labels: Sequence[str],
        languages: Sequence[str] | None,
        background: Array | None,
        negatives: Array | None,
    ) -> Self:
        """Prepare embeddings; the arguments are those of `Scorer.fit`."""
        names = tuple(dict.fromkeys(labels))
        known = {name: index for index, name in enumerate(names)}
        owners = np.array([known[label] for label in labels])
        language = language_directions(vectors, owners, languages or ["en"] * len(labels))
        free = unit(without(vectors, language))
        everyday, nobodys = (
            unit(without(rows, language)) if rows is not None and rows.size else free[:0]
            for rows in (background, negatives)
        )
        middle = everyday.mean(0) if len(everyday) else np.zeros(free.shape[1], "f4")
        kept = everyday[_apart(everyday - middle, free - middle, owners)]
        foreign = np.concatenate([kept, nobodys])
        return cls(names, owners, language, free, foreign, len(nobodys), middle)

    @property
    def counts(self) -> NDArray[np.intp]:
        """How many exemplars each expert has, (c,)."""
        return np.bincount(self.owners, minlength=len(self.names))

    def held_out(self) -> NDArray[np.intp]:
        """Return the exemplars that are left out in turn: those whose expert has another one."""
        rows = np.flatnonzero(self.counts[self.owners] > 1)
        most = max(HELD_OUT // len(self.names), 200)
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _apart(everyday: Array, exemplars: Array, owners: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tell which everyday questions lie farther from all exemplars than those from each other."""
    if not len(everyday) or len(exemplars) < 2:
        return np.ones(len(everyday), bool)
    sample = np.random.default_rng(0).permutation(len(exemplars))[:1000]
    rows = unit(exemplars)
    among = rows[sample] @ rows.T
    among[np.arange(len(sample)), sample] = -np.inf
    among[owners[sample][:, None] != owners] = -np.inf
    nearest = among.max(1)
    nearest = nearest[np.isfinite(nearest)]
    if not len(nearest):
        return np.ones(len(everyday), bool)
    return np.asarray((unit(everyday) @ rows.T).max(1) < np.median(nearest))


def fit(known: Exemplars, retention: float, settings: Settings | None) -> tuple[Any, ...]:
    """Return the fields of a `Scorer`."""
    groups = Groups(known.owners, len(known.names))
    held_out = known.held_out()
    products = known.vectors[held_out] @ known.vectors.T
    products[np.arange(len(held_out)), held_out] = -np.inf
    classes, logs = _classes(known, groups, products, held_out, settings)
    best = logs.argmax(1) if len(held_out) else held_out
    scope, own, foreign = _scope(known, groups, products, held_out, best)
    if len(held_out):
        thresholds = thresholds_of(own, best, len(known.names), retention)
        if len(known.foreign):
            # Where foreign questions keep away, little is won by refusing one's own.
            kept_out = np.quantile(foreign.max(1), 1 - LET_IN)
            least = thresholds_of(own, best, len(known.names), (1 + retention) / 2)
            thresholds = np.minimum(thresholds, np.maximum(kept_out, least)).astype("f4")
    else:
        thresholds = np.full(len(known.names), _over_others(foreign.max(1), retention), "f4")
    margins = (foreign[: len(known.foreign)] - thresholds).max(1)
    told = margins[-known.certain :] if known.certain >= ENOUGH else margins
    scope = replace(scope, sigmoid=sigmoid_of(own - thresholds[best], told))
    return (
        known.names,
        known.owners,
        known.language,
        known.vectors,
        classes,
        scope,
        thresholds,
        groups,
    )


def _classes(
    known: Exemplars,
    groups: Groups,
    products: Array,
    held_out: NDArray[np.intp],
    settings: Settings | None,
) -> tuple[ClassScore, Array]:
    """Return the class score, and what it gives (m, c) for the exemplars held out."""
    middle = Middle.of(known.vectors, _centre(known))
    rows = middle.own(known.vectors)
    targets = membership(known.owners, len(known.names)) - 1 / len(known.names)
    bandwidths = (settings.bandwidth,) if settings else BANDWIDTHS
    widths = (settings.width,) if settings else WIDTHS
    probes = {width: Probe.fit(rows, targets, width, RIDGE) for width in widths}
    if not len(held_out) or len(known.names) == 1:
        chosen = settings or Settings(0.07, 0.5, (0.05, NEVER))
        probe = Probe.fit(rows, targets, chosen.width, RIDGE)[0]
        nothing = np.zeros((len(held_out), len(known.names)), "f4")
        return ClassScore(chosen, middle, probe, 1.0), nothing
    mine = known.owners[held_out]
    cosines, _ = middle.around(products, known.vectors[held_out])
    densities = {width: groups.density(cosines, width) for width in bandwidths}
    values = {width: found[held_out] for width, (_, found) in probes.items()}
    chosen, logs = _choice(densities, values, mine, settings)
    temperature, _ = temperature_of(logs, mine)
    return ClassScore(chosen, middle, probes[chosen.width][0], temperature), logs


def _choice(
    densities: dict[float, Array],
    values: dict[float, Array],
    owners: NDArray[np.intp],
    settings: Settings | None,
) -> tuple[Settings, Array]:
    """Choose bandwidths, and density, probe or both, by the likelihood of the exemplars."""
    if settings is not None:
        logs = blended(densities[settings.bandwidth], values[settings.width], settings.temperatures)
        return settings, logs
    warm = {key: temperature_of(scores, owners)[0] for key, scores in densities.items()}
    warmth = {key: temperature_of(scores, owners)[0] for key, scores in values.items()}
    best = None
    for bandwidth, width in product(densities, values):
        both = (warm[bandwidth], warmth[width])
        for used in (both, (both[0], NEVER), (NEVER, both[1])):
            logs = blended(densities[bandwidth], values[width], used)
            loss = temperature_of(logs, owners)[1] + (0 if used == both else CAUTION)
            if best is None or loss < best[0] - 1e-6:
                best = (loss, Settings(bandwidth, width, used), logs)
    assert best is not None
    return best[1], best[2]


def _scope(
    known: Exemplars,
    groups: Groups,
    products: Array,
    held_out: NDArray[np.intp],
    best: NDArray[np.intp],
) -> tuple[InScope, Array, Array]:
    """Return the in-scope score, and what it gives held-out exemplars (m,) and others (k, c).

    Of a held-out exemplar it is the score of the expert that would get it.
    """
    middle = Middle.of(known.vectors, _guarded_from(known))
    foreign = middle.own(known.foreign)
    targets = np.zeros((len(known.owners) + len(foreign), len(known.names)), "f4")
    targets[: len(known.owners)] = membership(known.owners, len(known.names))
    rows = np.concatenate([middle.own(known.vectors), foreign])
    guard, values = Probe.fit(rows, targets, GUARD_WIDTH, GUARD_RIDGE)
    # Without a background the other experts' exemplars are all that is foreign to somebody.
    away = known.foreign if len(foreign) else known.vectors
    far = away @ known.vectors.T
    spread = _spread(products if len(products) else far)
    strangers = _parts(groups, far, spread, values[-len(away) :])
    if not len(held_out):
        scales = tuple(_scale(part) for part in strangers)
        scope = InScope(middle, foreign, guard, spread, scales)
        return scope, np.zeros(0, "f4"), scaled(strangers, scales)
    own = tuple(
        part if part.shape[1] == 1 else part[np.arange(len(best)), best, None]
        for part in _parts(groups, products, spread, values[held_out])
    )
    scales = tuple(_scale(part) for part in own)
    mine, others = scaled(own, scales)[:, 0], scaled(strangers, scales)
    return InScope(middle, foreign, guard, spread, scales), mine, others


def _parts(
    groups: Groups, products: Array, spread: float, guard: Array
) -> tuple[Array, Array, Array]:
    density = groups.density(products, spread)
    best = np.maximum(groups.most(products), np.float32(-1))
    return best, pooled(density, spread)[:, None], guard


def _spread(products: Array) -> float:
    finite = products[np.isfinite(products)]
    return max(float(finite.std()), 0.01) if len(finite) else 0.1


def _scale(scores: Array) -> tuple[float, float]:
    """Return mean and deviation of scores."""
    return float(scores.mean()), max(float(scores.std()), 0.005)


def _centre(known: Exemplars) -> Array:
    """Return the mean of the experts' means; a single one's is its own subject."""
    if len(known.names) == 1:
        return known.middle
    sums = np.zeros((len(known.names), known.vectors.shape[1]), "f8")
    np.add.at(sums, known.owners, known.vectors)
    return np.asarray((sums / known.counts[:, None]).mean(0), "f4")


def _guarded_from(known: Exemplars) -> Array:
    """Return half of the middle: around all of it a narrow cone's middle would be everywhere."""
    return np.asarray((known.middle if known.middle.any() else _centre(known)) / 2, "f4")


def _over_others(foreign: Array, share: float) -> float:
    """Return what a share of the foreign questions do not reach."""
    return float(np.quantile(foreign, share)) if len(foreign) else -np.inf
