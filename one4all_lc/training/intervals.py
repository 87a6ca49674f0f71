"""How sure a figure is: 95 % intervals, numpy only.

Shares of rows (exact match, first word) have Wilson's interval; every other figure, and every
difference of two that were measured on the same rows, the percentile bootstrap over rows: rows are
drawn again with replacement, for both of a pair the same ones.

Sources: Wilson, JASA 22 (1927); Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
RESAMPLES = 2000
_NORMAL_QUANTILE = 1.959963984540054  # of 97.5 %


def of_mean(values: Array) -> Interval:
    """Return the interval of a mean: Wilson's if every row scores 0 or 1, else the bootstrap's.

    Args:
        values: (n,) scores, a row each.
    """
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values))
    return percentiles(_drawn(values).mean(1))


def of_difference(new: Array, old: Array) -> Interval:
    """Return the interval of `mean(new) - mean(old)` by the paired bootstrap.

    Args:
        new: (n,) scores.
        old: (n,) scores of the same rows.
    """
    return of_shift(new - old)


def of_shift(differences: Array) -> Interval:
    """Return the interval of a mean of (n,) differences by the bootstrap."""
    return percentiles(_drawn(differences).mean(1))


def of_perplexity(nats: Array, tokens: Array) -> Interval:
    """Return the interval of `exp(sum(nats) / sum(tokens))` by the bootstrap.

    Args:
        nats: (n,) summed cross entropy of each row's answer.
        tokens: (n,) tokens of each row's answer.
    """
    return percentiles(np.exp(_drawn(nats).sum(1) / _drawn(tokens).sum(1)))


def of_perplexity_ratio(new: Array, old: Array, tokens: Array) -> Interval:
    """Return the interval of the ratio of two perplexities by the paired bootstrap.

    Args:
        new: (n,) summed cross entropy of each row's answer.
        old: (n,) the same of another model.
        tokens: (n,) tokens of each row's answer.
    """
    return of_perplexity(new - old, tokens)  # exp(a / t) / exp(b / t)


def wilson(hits: int, rows: int) -> Interval:
    """Return Wilson's interval of a share.

    Args:
        hits: Rows that have it.
        rows: All rows, at least one.
    """
    share, z = hits / rows, _NORMAL_QUANTILE
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    half /= 1 + z * z / rows
    return max(0.0, middle - half), min(1.0, middle + half)


def _drawn(values: Array) -> Array:
    """Return the values of resampled rows, (resamples, n); the same rows for every array."""
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return np.asarray(values, float)[rows]


def percentiles(figures: Array) -> Interval:
    """Return between which figures of resampled rows 95 % of them lie."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(figures, (tail, 100 - tail))
    return float(low), float(high)
