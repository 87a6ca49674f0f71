"""How well a router does on labelled questions: numbers alone, in numpy.

Two things can go wrong: a question goes to another's expert, and a question that is nobody's is
taken or one that is somebody's refused. The first is told by accuracy in scope, which looks at the
likeliest expert whether or not the router abstained; the second by AUROC, by recall of `oos` and by
retention. Accuracy and macro-F1 over all rows count both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from one4all_lc.folder import OOS
from one4all_lc.routing.route import Route

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

NOBODY = -1
"""The index of `oos` among wanted labels, and of abstention among routed ones."""
BINS = 10
"""Bins of equal numbers of rows for the calibration error."""


@dataclass(frozen=True)
class Outcome:
    """What a router did with n labelled questions.

    Attributes:
        labels: The c domains' names.
        wanted: (n,) index of the right domain, -1 where the question is nobody's.
        likeliest: (n,) index of the likeliest expert, whether or not it was taken.
        routed: (n,) index of the expert that would answer, -1 where the router abstained.
        probability: (n,) of the likeliest expert, given that the question is somebody's.
        anybody: (n,) probability that the question is somebody's.
        in_scope: (n,) what is compared with the threshold, less the threshold.
    """

    labels: tuple[str, ...]
    wanted: Ints
    likeliest: Ints
    routed: Ints
    probability: Floats
    anybody: Floats
    in_scope: Floats

    @classmethod
    def of(cls, labels: Sequence[str], routes: Iterable[Route], wanted: Sequence[str]) -> "Outcome":
        """Read an outcome from routes.

        Args:
            labels: The experts' names.
            routes: The routes of the questions.
            wanted: The names of the experts that should have them; others are nobody's.
        """
        index = {name: position for position, name in enumerate(labels)}
        rows = [
            (
                index[route.experts[0].name],
                NOBODY if route.best is None else index[route.best],
                route.experts[0].probability,
                route.in_scope_probability or 0.0,
                (route.in_scope or 0.0) - (route.threshold or 0.0),
            )
            for route in routes
        ]
        likeliest, routed, probability, anybody, in_scope = zip(*rows, strict=True)
        return cls(
            tuple(labels),
            np.array([index.get(name, NOBODY) for name in wanted]),
            np.array(likeliest),
            np.array(routed),
            np.array(probability, float),
            np.array(anybody, float),
            np.array(in_scope, float),
        )

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """(n,) whether a question is somebody's."""
        return np.not_equal(self.wanted, NOBODY)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether the decision was right, abstention included."""
        return np.equal(self.routed, self.wanted)

    @cached_property
    def confidence(self) -> Floats:
        """(n,) probability that the likeliest expert is right, as the router sees it."""
        return self.probability * self.anybody

    def confusion(self) -> Ints:
        """Count (c + 1, c + 1) questions by wanted and routed domain, nobody last."""
        size = len(self.labels) + 1
        cells = self.wanted % size * size + self.routed % size
        return np.bincount(cells, minlength=size * size).reshape(size, size)


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of an outcome; None where there is no row to tell them from."""
    known, right = outcome.known, outcome.right
    hit = outcome.likeliest == outcome.wanted
    return {
        "rows": len(known),
        "rows_in_scope": int(known.sum()),
        "accuracy": _mean(right),
        "macro_f1": _mean(per_label(outcome.confusion())["f1"]),
        "accuracy_in_scope": _mean(hit[known]),
        "retention": _mean(outcome.routed[known] != NOBODY),
        "oos_recall": _mean(right[~known]),
        "auroc": auroc(outcome.in_scope, known),
        "ece": calibration_error(outcome.probability[known], hit[known]),
        "ece_in_scope": calibration_error(outcome.anybody, known),
        "aurc": _mean(risk_coverage(outcome)[1]),
    }


def arms(outcome: Outcome, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return the summaries of the router and of what it must be compared with.

    `oracle` is always right, `random` sends each question to any expert or to nobody, and `base`
    leaves every question to the base.
    """
    count, wanted = len(outcome.labels), outcome.wanted
    guess = np.random.default_rng(seed).integers(NOBODY, count, len(wanted))
    zeros = np.zeros(len(wanted), np.intp)
    decisions = {"oracle": wanted, "random": guess, "base": zeros + NOBODY}
    fields = ("accuracy", "macro_f1", "accuracy_in_scope", "retention", "oos_recall")
    whole = summary(outcome)
    found = {"router": {name: whole[name] for name in fields}}
    for name, routed in decisions.items():
        blind = np.zeros(len(wanted))
        other = Outcome(outcome.labels, wanted, routed, routed, blind, blind, blind)
        figures = summary(other)
        found[name] = {field: figures[field] for field in fields}
    return found


def per_label(confusion: Ints) -> dict[str, Floats]:
    """Return precision, recall and F1 (c + 1,) of each row of a confusion matrix.

    What never occurs and is never found is NaN and does not count in means.
    """
    hits = np.diag(confusion).astype(float)
    wanted, routed = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / routed, hits / wanted
        f1 = 2 * hits / (wanted + routed)
    return {"precision": precision, "recall": recall, "f1": f1}


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """Return the chance that a positive scores over a negative; None if either is missing."""
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # ties share their mean rank
    return float((ranks[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))


def reliability(
    probability: Floats, right: NDArray[np.bool_], bins: int = BINS
) -> tuple[Floats, Floats, Ints]:
    """Return mean probability, share that is right, and number of rows, for bins of equal counts.

    Equal counts, since most probabilities of a good router lie near 1, where bins of equal width
    would put all rows into one. Source: Nguyen and O'Connor, Posterior calibration, 2015.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    said = np.array([probability[part].mean() for part in parts])
    true = np.array([right[part].mean() for part in parts])
    return said, true, np.array([len(part) for part in parts])


def calibration_error(
    probability: Floats, right: NDArray[np.bool_], bins: int = BINS
) -> float | None:
    """Return the expected calibration error; None without rows."""
    if not len(probability):
        return None
    said, true, count = reliability(probability, right, bins)
    return float(np.average(np.abs(said - true), weights=count))


def risk_coverage(outcome: Outcome, confidence: Floats | None = None) -> tuple[Floats, Floats]:
    """Return coverage and risk (n,) as the least confidence that an expert may answer with falls.

    Coverage is the share of all questions that an expert answers, risk the share of these that are
    answered by the wrong expert or should have been nobody's. Rows of one confidence come together:
    no order among them is better than another.
    """
    confidence = outcome.confidence if confidence is None else confidence
    order = np.argsort(-confidence, kind="stable")
    wrong = (outcome.likeliest != outcome.wanted)[order].astype(float)
    levels, place = np.unique(-confidence[order], return_inverse=True)
    shared = np.bincount(place, wrong) / np.bincount(place) if len(levels) else wrong
    taken = np.arange(1, len(order) + 1)
    return taken / len(order), np.cumsum(shared[place]) / taken


def as_routed(outcome: Outcome) -> tuple[float, float]:
    """Return coverage and risk of the router's own decisions."""
    taken = outcome.routed != NOBODY
    wrong = taken & ~outcome.right
    return float(taken.mean()), float(wrong.sum() / max(taken.sum(), 1))


def confused(
    confusion: Ints, labels: Sequence[str], most: int = 20
) -> list[tuple[str, str, int, float]]:
    """List the commonest mistakes: wanted, routed, rows, and their share of the wanted's rows."""
    names = [*labels, OOS]
    totals = np.maximum(confusion.sum(1), 1)
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    places = [divmod(int(cell), len(names)) for cell in order]
    return [
        (names[row], names[column], int(errors[row, column]), errors[row, column] / totals[row])
        for row, column in places
        if errors[row, column]
    ]


def _mean(values: NDArray[Any]) -> float | None:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
