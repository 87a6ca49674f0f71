"""What is said of a router: every test says what a reader would be misled about."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Exemplar
from one4all_lc.library import Library
from one4all_lc.routing import figures, report
from one4all_lc.routing.evaluation import (
    Outcome,
    arms,
    as_routed,
    auroc,
    calibration_error,
    confused,
    per_label,
    risk_coverage,
    summary,
)
from one4all_lc.routing.measuring import library_from, measure
from one4all_lc.routing.plane import plane
from one4all_lc.routing.rows import Labelled, draw, held_out, read_labelled
from one4all_lc.testing import FakeEmbeddings

FA = "بهترین دوربین گوشی در 2025 کدام است؟"


def made(count=400, experts=5, seed=0):
    """An outcome at random, right more often where it is surer."""
    generator = np.random.default_rng(seed)
    wanted = generator.integers(-1, experts, count)
    probability = generator.random(count)
    anybody = np.where(wanted >= 0, generator.random(count), generator.random(count) ** 2)
    wrong = generator.random(count) > probability
    likeliest = np.where(wrong | (wanted < 0), generator.integers(0, experts, count), wanted)
    routed = np.where(anybody > 0.3, likeliest, -1)
    names = tuple("abcdefghij"[:experts])
    return Outcome(names, wanted, likeliest, routed, probability, anybody, anybody - 0.3)


def test_figures_are_what_scikit_learn_says():
    """A router would look better or worse than it is."""
    outcome = made()
    found = summary(outcome)
    wanted, routed = outcome.wanted, outcome.routed
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(wanted, routed))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(wanted, routed, average="macro"))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(outcome.known, outcome.anybody))
    order = [*range(5), -1]
    expected = metrics.confusion_matrix(wanted, routed, labels=order)
    np.testing.assert_array_equal(outcome.confusion(), expected)
    assert found["oos_recall"] == pytest.approx((routed[wanted == -1] == -1).mean())


def test_auroc_counts_ties_as_half():
    """A router that says the same of everything would look as if it knew."""
    positive = np.array([True, False, True, False])
    assert auroc(np.zeros(4), positive) == 0.5
    assert auroc(np.array([2.0, 1, 2, 1]), positive) == 1
    assert auroc(np.zeros(2), np.array([True, True])) is None


def test_calibration_error_is_the_gap_between_said_and_true():
    """Probabilities that mean nothing would be called calibrated."""
    generator = np.random.default_rng(0)
    said = generator.random(20_000)
    assert calibration_error(said, generator.random(20_000) < said) < 0.02
    assert calibration_error(np.full(1000, 0.9), np.arange(1000) % 2 == 0) == pytest.approx(0.4)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) is None


def test_risk_and_coverage_at_both_ends():
    """The curve would promise what abstaining does not give."""
    outcome = made()
    coverage, risk = risk_coverage(outcome)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx((outcome.likeliest != outcome.wanted).mean())
    assert risk[:40].mean() < risk[-1]
    level = risk_coverage(outcome, np.zeros(400))[1]
    np.testing.assert_allclose(level, risk[-1])  # no order among equals
    taken, mistaken = as_routed(outcome)
    assert taken == pytest.approx((outcome.routed >= 0).mean())
    assert 0 < mistaken < 1


def test_arms_bound_the_router():
    """Nobody could tell whether 0.9 is much."""
    found = arms(made(), seed=1)
    assert found["oracle"] == dict.fromkeys(found["oracle"], 1.0)
    assert (found["base"]["oos_recall"], found["base"]["retention"]) == (1.0, 0.0)
    assert found["random"]["accuracy"] == pytest.approx(1 / 6, abs=0.06)
    assert found["router"]["accuracy"] > found["random"]["accuracy"]


def test_labels_without_rows_do_not_count():
    """A domain that nobody asked about would pull the mean down to nothing."""
    outcome = Outcome(("a", "b"), *(np.zeros(3, int),) * 3, *(np.ones(3),) * 3)
    assert summary(outcome)["macro_f1"] == 1
    assert summary(outcome)["oos_recall"] is None
    assert np.isnan(per_label(outcome.confusion())["recall"][1])
    assert confused(outcome.confusion(), outcome.labels) == []


def test_a_map_puts_like_beside_like():
    """The picture would show a muddle where the router sees domains."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(4), 20)
    far = np.where(owners == 3, 6.0, 1.0)[:, None]  # another language, say
    vectors = np.eye(32)[owners] * far + generator.normal(0, 0.15, (80, 32))
    points = plane(vectors.astype("f4"), owners)
    np.testing.assert_array_equal(points, plane(vectors.astype("f4"), owners))
    nearest = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert (owners[nearest.argmin(1)] == owners).mean() > 0.9


@pytest.mark.parametrize(("rows", "domains"), [(1, 1), (2, 1), (3, 3)])
def test_a_map_of_few_exemplars_is_a_map(rows, domains):
    """A library of one expert could not be measured."""
    vectors = np.random.default_rng(0).normal(size=(rows, 8)).astype("f4")
    points = plane(vectors, np.arange(rows) % domains, 4)
    assert points.shape == (rows, 4)
    assert np.isfinite(points).all()


# Rows


def test_rows_of_either_kind_are_read(tmp_path):
    """An expert's own training file could not be mined from."""
    file = tmp_path / "sql.jsonl"
    file.write_text(
        '{"question": "How many?", "answer": "SELECT", "split": "dev"}\n\n'
        f'{{"text": "{FA}", "label": "mobile", "lang": "fa"}}\n',
        encoding="utf-8",
    )
    assert read_labelled([file], None) == [
        Labelled("How many?", "", "dev"),
        Labelled(FA, "mobile", "train", "fa"),
    ]
    assert held_out(read_labelled([file], None))[0].split == "dev"
    with pytest.raises(InvalidInput, match=r"sql.jsonl, line 1 has no text under 'label'"):
        read_labelled([file])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "is not an object"),
        ("{", "is not JSON"),
        ('{"text": " ", "label": "a"}', "has no text under 'text'"),
        ('{"text": "a", "label": "a", "split": "x"}', "has split 'x'"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, line, words):
    """Nobody could find the row among ten thousand."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "a"}\n' + line)
    with pytest.raises(InvalidInput, match=f"line 2 {words}"):
        read_labelled([file])


def test_no_test_row_is_drawn_and_the_seed_decides():
    """A router measured on its own exemplars would look perfect."""
    rows = [Labelled(f"{label} {n}", label, s) for label in "ab" for n in range(30) for s in SPLITS]
    rows = [Labelled(f"{row.text} {row.split}", row.label, row.split) for row in rows]
    drawn = draw(rows, 10, 3)
    assert {label: len(items) for label, items in drawn.items()} == {"a": 10, "b": 10}
    assert all(item.text.endswith("train") for items in drawn.values() for item in items)
    assert draw(rows, 10, 3) == drawn != draw(rows, 10, 4)
    assert len(draw(rows, 99, 3)["a"]) == 30


SPLITS = ("train", "dev", "test")


# The whole


def questions():
    """Rows of three domains that words tell apart, one of them Persian, and of nobody."""
    words = {"fruit": "lemon plum", "space": "comet moon", "تلفن همراه": "دوربین گوشی"}
    rows = []
    for label, pair in words.items():
        first, second = pair.split()
        for index in range(12):
            split = "train" if index < 8 else "test"
            rows.append(Labelled(f"{first} {second} {index}", label, split))
    rows += [Labelled(f"lemon comet {n}", "oos", "train" if n < 4 else "test") for n in range(8)]
    rows.append(Labelled("<script>alert(1)</script> comet lemon", "fruit", "test"))
    return rows


@pytest.fixture(scope="module")
def measured():
    rows = questions()
    library, labels = library_from(draw(rows, 8, 0))
    return measure(library, labels, held_out(rows), embeddings=FakeEmbeddings())


def test_a_measurement_is_of_the_router_itself(measured):
    """The report would tell of another router than the one that answers."""
    found = report.numbers(measured)
    json.dumps(found, allow_nan=False)
    assert found["rows"] == 17
    assert found["accuracy_in_scope"] > 0.9
    assert [row["label"] for row in found["experts"]][-1] == "oos"
    assert [row["exemplars"] for row in found["experts"]] == [8, 8, 8, 4]
    assert sum(map(sum, found["confusion"]["rows"])) == 17
    again = measured.router.batch([row.text for row in measured.rows])
    assert [route.best for route in again] == [route.best for route in measured.routes]


def test_wrong_rows_say_why(measured):
    """A mistake could be counted but not mended."""
    wrong = report.wrong_rows(measured)
    assert len(wrong) == 17 - round(report.numbers(measured)["accuracy"] * 17)
    for row in wrong:
        assert row["label"] != row["routed"]
        assert row["nearest_label"] in {"fruit", "space", "تلفن همراه"}


def test_a_report_is_whole_and_rows_stay_in_its_folder(measured, tmp_path):
    """A page without its figures; or questions of users in a place where nobody looks for them."""
    page = report.write(tmp_path / "out", measured, "Router", "On seventeen rows.")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"confusion.png", "risk_coverage.png", "reliability.png", "exemplars.png"}
    assert names == {"report.html", "report.json", "wrong.jsonl", *pictures}
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("data:image/png") == 4
    assert "تلفن همراه" in html
    lines = (page.parent / "wrong.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == report.wrong_rows(measured)


def test_only_oos_is_refused():
    """A router without experts would be measured."""
    with pytest.raises(InvalidInput, match="nothing to route to"):
        library_from({"oos": (Exemplar("a"),)})
    with pytest.raises(InvalidInput, match="nothing to measure with"):
        held_out([Labelled("a", "b")])


def test_many_domains_are_shown_by_those_that_are_confused():
    """A matrix of 150 domains would be a picture of nothing."""
    generator = np.random.default_rng(0)
    wanted = generator.integers(0, 150, 3000)
    routed = np.where(wanted == 7, 8, wanted)
    names = tuple(f"domain_{index}" for index in range(150))
    ones = np.ones(3000)
    outcome = Outcome(names, wanted, routed, routed, ones, ones, ones)
    table = outcome.confusion()
    kept = figures.most_confused(table)
    assert {7, 8, 150} <= set(kept)
    smaller, shown = figures.folded(table, [*names, "oos"], kept)
    assert smaller.sum() == table.sum()
    assert (len(shown), shown[-1]) == (figures.SHOWN + 1, "all others")
    drawn = Image.open(io.BytesIO(figures.confusion(outcome)))
    assert max(drawn.size) < 2500
    points = generator.normal(size=(600, 4))
    picture = figures.exemplar_map(points, np.arange(600) % 150, names)
    assert max(Image.open(io.BytesIO(picture)).size) < 2500


def test_experts_own_exemplars_can_be_measured(tmp_path):
    """Users could measure the router of a benchmark and not their own."""
    from tests.test_routing import FRUIT, SPACE, make_expert

    make_expert(tmp_path, "fruit", FRUIT)
    make_expert(tmp_path, "space", SPACE)
    library = Library(tmp_path)
    rows = [Labelled(text, "fruit", "test") for text in FRUIT]
    found = measure(library, library.names, rows, embeddings=FakeEmbeddings())
    assert summary(found.outcome)["accuracy"] == 1
