"""How sure a figure is: whoever publishes by an interval that is wrong publishes worse experts."""

import numpy as np
import pytest
from scipy import stats

from one4all_lc.training import intervals


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (3, 10), (10, 10), (40, 100), (1, 1)])
def test_shares_have_wilsons_interval(hits: int, rows: int):
    """Lost: an honest figure for few rows, or for none that is right."""
    known = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(hits, rows) == pytest.approx((known.low, known.high), abs=1e-9)
    values = np.array([1.0] * hits + [0.0] * (rows - hits))
    assert intervals.of_mean(values) == intervals.wilson(hits, rows)


def test_other_scores_have_the_bootstraps():
    """Lost: intervals that other tools would give too."""
    values = np.random.default_rng(1).beta(2, 5, 80)
    known = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    ours = intervals.of_mean(values)
    assert ours == pytest.approx(tuple(known.confidence_interval), abs=0.01)
    assert intervals.of_mean(values) == ours, "the same rows must give the same interval"


def test_pairs_are_resampled_together():
    """Lost: small but certain gains, hidden by how much rows differ from each other."""
    old = np.random.default_rng(3).uniform(0, 1, 60)
    low, high = intervals.of_difference(old + 0.01, old)
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.01)


def test_the_interval_covers_what_it_should():
    """Lost: the meaning of 95 %."""
    draw = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        low, high = intervals.of_difference(draw.normal(0.1, 1, 50), draw.normal(0, 1, 50))
        covered += low <= 0.1 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_perplexities_weigh_rows_by_their_tokens():
    """Lost: the perplexity itself, which a mean over rows is not."""
    nats, tokens = np.array([10.0, 1.0, 4.0]), np.array([5.0, 1.0, 2.0])
    low, high = intervals.of_perplexity(nats, tokens)
    assert low <= np.exp(15 / 8) <= high
    ratio = intervals.of_perplexity_ratio(nats + tokens * np.log(0.5), nats, tokens)
    assert ratio == pytest.approx((0.5, 0.5))
