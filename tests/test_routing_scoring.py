"""The scorer alone, on drawn vectors: every test says what a user would lose if it failed."""

import numpy as np
import pytest

from one4all_lc.routing.calibration import sigmoid_of, temperature_of, thresholds_of
from one4all_lc.routing.fitting import Exemplars, fit
from one4all_lc.routing.probe import MOST, Probe, membership
from one4all_lc.routing.scoring import Scorer
from one4all_lc.routing.spaces import Groups, Middle, unit


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


def best(scorer: Scorer, vectors):
    """Return the best expert's index and in-scope score less its threshold."""
    scores = scorer.score(vectors)
    index = scores.class_score.argmax(1)
    return index, scores.in_scope[np.arange(len(index)), index] - scorer.thresholds[index]


@pytest.mark.parametrize("retention", [0.5, 0.8, 0.95])
def test_new_questions_are_kept_as_often_as_asked(retention):
    """Lost otherwise: a threshold that fits the exemplars and refuses what users ask."""
    vectors, labels = blobs({"a": 160, "b": 300})
    train = np.arange(len(labels)) % 2 == 0
    known = [label for label, used in zip(labels, train, strict=True) if used]
    _, margin = best(Scorer.fit(vectors[train], known, target_retention=retention), vectors[~train])
    assert (margin >= 0).mean() == pytest.approx(retention, abs=0.08)


def test_thresholds_are_the_experts_own_shrunk_to_everybodys():
    """Lost otherwise: five exemplars alone decide what an expert refuses."""
    scores = np.concatenate([np.linspace(0, 1, 60), np.linspace(2, 3, 5)]).astype("f4")
    owners = np.array([0] * 60 + [1] * 5)
    found = thresholds_of(scores, owners, 3, 0.9)
    everybody = np.quantile(scores, 0.1)
    for index, count in enumerate((60, 5)):
        trust = count / (count + 40)
        own = np.quantile(scores[owners == index], 0.1)
        assert found[index] == pytest.approx(trust * own + (1 - trust) * everybody, abs=1e-5)
    assert found[2] == pytest.approx(everybody, abs=1e-5)  # nothing of its own was held out


@pytest.mark.parametrize("width", [0.3, 0.8])
def test_held_out_values_are_those_of_a_probe_without_the_row(width):
    """Lost otherwise: probabilities near 1, for every exemplar knows itself."""
    vectors, labels = blobs({"a": 12, "b": 9})
    rows = unit(vectors - vectors.mean(0))
    targets = membership(np.array([label == "b" for label in labels], int), 2)
    _, held_out = Probe.fit(rows, targets, width, 0.1)
    without, _ = Probe.fit(np.delete(rows, 4, 0), np.delete(targets, 4, 0), width, 0.1)
    expected = without.of_cosines(rows[4:5] @ np.delete(rows, 4, 0).T)
    np.testing.assert_allclose(held_out[4], expected[0], atol=1e-4)


def test_many_exemplars_take_a_linear_probe_with_true_held_out_values():
    """Lost otherwise: hours for ten thousand exemplars."""
    vectors, labels = blobs({"a": MOST, "b": 50})
    rows = unit(vectors - vectors.mean(0))
    targets = membership(np.array([label == "b" for label in labels], int), 2)
    probe, held_out = Probe.fit(rows, targets, 0.3, 0.1)
    assert probe.linear
    without, _ = Probe.fit(np.delete(rows, 4, 0), np.delete(targets, 4, 0), 0.3, 0.1)
    np.testing.assert_allclose(held_out[4], without.of_vectors(rows[4:5])[0], atol=1e-4)


def test_cosines_around_a_middle_need_no_second_product():
    """Lost otherwise: the two scores compare with different exemplars."""
    vectors, _ = blobs({"a": 20, "b": 20})
    point = vectors.mean(0)
    queries = vectors[::7]
    cosines, moved = Middle.of(vectors, point).around(queries @ vectors.T, queries)
    expected = unit(queries - point) @ unit(vectors - point).T
    np.testing.assert_allclose(cosines, expected, atol=1e-4)
    np.testing.assert_allclose(moved, unit(queries - point), atol=1e-5)


def test_density_does_not_grow_with_the_number_of_exemplars():
    """Lost otherwise: the expert with most exemplars answers everything."""
    groups = Groups(np.array([1, 0, 1, 1, 0]), 2)
    cosines = np.array([[0.4, 0.4, 0.4, 0.4, 0.4], [0.2, -np.inf, 0.8, 0.2, 0.5]], "f4")
    density = groups.density(cosines, 0.1)
    np.testing.assert_allclose(density[0], [0.4, 0.4], atol=1e-5)
    assert density[1, 0] == pytest.approx(0.5, abs=1e-5)  # the held-out one does not count
    assert 0.6 < density[1, 1] < 0.8


def test_number_of_exemplars_does_not_decide():
    """Lost otherwise: the expert with most exemplars answers everything."""
    vectors, labels = blobs({"few": 8, "many": 300}, spread=0.9)
    index, _ = best(Scorer.fit(vectors, labels), vectors)
    assert (index[:8] == 0).all()


def test_probabilities_are_not_certain_on_little_evidence():
    """Lost otherwise: probability 1.00 after ten exemplars."""
    vectors, labels = blobs({"a": 5, "b": 5}, spread=0.2)
    probability = Scorer.fit(vectors, labels).score(vectors).probability
    assert 0.8 < probability.max() < 0.999


def test_temperature_and_sigmoid_find_what_was_drawn():
    """Lost otherwise: probabilities that are right by order alone."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5)).astype("f4")
    chance = np.exp(logits / 0.5)
    chance /= chance.sum(1, keepdims=True)
    owners = np.array([random.choice(5, p=row) for row in chance])
    assert temperature_of(logits, owners)[0] == pytest.approx(0.5, rel=0.15)
    slope, offset = sigmoid_of(random.normal(1, 1, 4000), random.normal(-1, 1, 400))
    assert slope == pytest.approx(2, rel=0.15)
    # How many there are of each does not matter: the share of own questions is taken to be .8.
    assert offset == pytest.approx(np.log(0.8 / 0.2), abs=0.15)


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
    index, margin = best(Scorer.fit(vectors, labels), vectors)
    assert index.tolist() == [0, 1, 2]
    assert (margin >= 0).all()


def test_single_expert_is_measured_against_the_background():
    """Lost otherwise: one expert in a narrow cone takes whatever else lies in that cone."""
    vectors, labels = blobs({"own": 80, "foreign": 80})
    everyday, _ = blobs({str(index): 1 for index in range(60)})
    own, foreign = vectors[:80], vectors[80:]
    scorer = Scorer.fit(own[:40], labels[:40], background=everyday)
    assert (best(scorer, own[40:])[1] >= 0).mean() > 0.8
    assert (best(scorer, foreign)[1] >= 0).mean() < 0.1


def test_negatives_show_where_a_domain_ends():
    """Lost otherwise: questions that the user has labelled as nobody's are still answered."""
    vectors, labels = blobs({"own": 80, "near": 60}, spread=0.9)
    everyday, _ = blobs({str(index): 1 for index in range(60)}, seed=3)
    own = vectors[:80]
    near = unit(vectors[80:] + 0.6 * (own.mean(0) - vectors[80:].mean(0)))
    plain = Scorer.fit(own[:40], labels[:40], background=everyday)
    told = Scorer.fit(own[:40], labels[:40], background=everyday, negatives=near[:30])
    assert (best(plain, near[30:])[1] >= 0).mean() > 0.25
    assert (best(told, near[30:])[1] >= 0).mean() < 0.15
    assert (best(told, own[40:])[1] >= 0).mean() > 0.8


def test_everyday_questions_within_a_domain_are_not_held_against_it():
    """Lost otherwise: an expert about cooking refuses the recipes that the background has."""
    vectors, labels = blobs({"a": 30, "b": 30}, spread=0.4)
    everyday, _ = blobs({str(index): 1 for index in range(40)}, seed=5)
    within = unit(vectors[:30].mean(0, keepdims=True))
    mixed = np.concatenate([everyday, within])
    known = Exemplars.of(vectors, labels, None, mixed, None)
    assert 20 < len(known.foreign) <= len(everyday)
    assert not (np.abs(known.foreign - within).max(1) < 1e-4).any()
    told = Exemplars.of(vectors, labels, None, everyday, within)  # the user knows better
    assert (np.abs(told.foreign - within).max(1) < 1e-4).any()


def test_kept_settings_are_kept():
    """Lost otherwise: one more exemplar costs a choice among all settings."""
    vectors, labels = blobs({"a": 30, "b": 30})
    first = Scorer.fit(vectors[:-1], labels[:-1])
    second = Scorer(
        *fit(Exemplars.of(vectors, labels, None, None, None), 0.95, first.classes.settings)
    )
    assert second.classes.settings == first.classes.settings
    assert len(second.vectors) == 60
