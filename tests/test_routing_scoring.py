"""The scorer alone, on drawn vectors: every test says what a user would lose if it failed."""

import numpy as np
import pytest

from one4all_lc.routing.scoring import Scorer


def blobs(sizes: dict[str, int], seed: int = 0, spread: float = 0.6):
    """Draw unit vectors around one random centre per expert, all in one narrow cone as e5's."""
    random = np.random.default_rng(seed)
    cone = 3 * random.normal(size=32)
    rows, labels = [], []
    for name, size in sizes.items():
        centre = random.normal(size=32)
        rows += [cone + centre + spread * random.normal(size=32) for _ in range(size)]
        labels += [name] * size
    vectors = np.array(rows, "f4")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


@pytest.mark.parametrize("retention", [0.5, 0.8, 0.95])
def test_thresholds_are_quantiles_of_leave_one_out_scores(retention):
    """Lost otherwise: a constant that fits one embedder and fails on the next."""
    vectors, labels = blobs({"a": 60, "b": 200})
    scorer = Scorer.fit(vectors, labels, target_retention=retention)
    scores, held_out = scorer.leave_one_out()
    own = scorer.owners[held_out]
    mine = scores.in_scope[np.arange(len(own)), own]
    for index, count in enumerate((60, 200)):
        trust = count / (count + 20)
        expected = trust * np.quantile(mine[own == index], 1 - retention)
        expected += (1 - trust) * np.quantile(mine, 1 - retention)
        assert scorer.thresholds[index] == pytest.approx(expected, abs=1e-5)
    taken = mine >= scorer.thresholds[own]
    assert taken.mean() == pytest.approx(retention, abs=0.03)


def test_leave_one_out_hides_the_exemplar_from_itself():
    """Lost otherwise: thresholds near 1 that no question reaches."""
    vectors, labels = blobs({"a": 12, "b": 9})
    background = np.random.default_rng(1).normal(size=(30, 32)).astype("f4")
    scorer = Scorer.fit(vectors, labels, background=background)
    held_out, _ = scorer.leave_one_out()
    assert scorer.score(vectors[4:5]).similarity[0, 4] == pytest.approx(1, abs=1e-5)
    others = np.delete(vectors, 4, 0)
    without = Scorer.fit(others, labels[1:], background=background).score(vectors[4:5])
    assert held_out.in_scope[4, 0] == pytest.approx(without.in_scope[0, 0], abs=1e-5)


def test_number_of_exemplars_does_not_decide():
    """Lost otherwise: the expert with most exemplars answers everything."""
    vectors, labels = blobs({"few": 5, "many": 300}, spread=0.9)
    scorer = Scorer.fit(vectors, labels)
    scores, held_out = scorer.leave_one_out()
    right = scores.class_score.argmax(1) == scorer.owners[held_out]
    assert right[:5].all()
    assert right[5:].mean() > 0.95


def test_probabilities_are_not_certain_on_little_evidence():
    """Lost otherwise: probability 1.00 after ten exemplars."""
    vectors, labels = blobs({"a": 5, "b": 5}, spread=0.2)
    probability = Scorer.fit(vectors, labels).score(vectors).probability
    assert 0.8 < probability.max() < 0.999


def test_language_direction_is_removed():
    """Lost otherwise: the only expert with a second language gets all questions in it."""
    vectors, labels = blobs({"a": 20, "b": 20})
    language = np.eye(32, dtype="f4")[0]
    shifted = vectors.copy()
    shifted[:10] += language
    spoken = ["fa"] * 10 + ["en"] * 30
    scorer = Scorer.fit(shifted, labels, spoken)
    assert scorer.language.shape == (1, 32)
    assert (scorer.score(vectors[20:] + language).class_score.argmax(1) == 1).all()
    one_language = Scorer.fit(shifted, labels)
    assert one_language.language.shape == (0, 32)
    assert not (one_language.score(vectors[20:] + language).class_score.argmax(1) == 1).all()


def test_experts_of_one_exemplar_each():
    """Lost otherwise: a crash before anybody wrote exemplars."""
    vectors, labels = blobs({"a": 1, "b": 1, "c": 1})
    scorer = Scorer.fit(vectors, labels)
    scores = scorer.score(vectors)
    assert scores.class_score.argmax(1).tolist() == [0, 1, 2]
    foreign = scores.in_scope[~np.eye(3, dtype=bool)]
    assert (scorer.thresholds <= foreign.max()).all()
    assert (scorer.thresholds >= foreign.min()).all()
    assert (scores.in_scope.max(1) >= scorer.thresholds).all()


def test_single_expert_is_measured_around_the_background():
    """Lost otherwise: one expert in a narrow cone takes whatever else lies in that cone."""
    vectors, labels = blobs({"own": 80, "foreign": 80, "everyday": 1})
    everyday, _ = blobs({str(index): 1 for index in range(60)})
    own, foreign = vectors[:80], vectors[80:160]
    scorer = Scorer.fit(own[:40], labels[:40], background=everyday)
    assert (scorer.score(own[40:]).in_scope >= scorer.thresholds).mean() > 0.8
    assert (scorer.score(foreign).in_scope >= scorer.thresholds).mean() < 0.05
