"""When an expert had better say nothing: a threshold, fitted on dev rows as the expert is served.

classify, pair   Below it answers are more often wrong than right: right minus wrong answers is most
                 (Chow, 1970, where a wrong answer costs as much as a right one is worth). Where
                 several labels may hold, the F1 of all of them together is most.
extract          The F1 of answers, with "no answer" as one of them, is most, as SQuAD 2.0 tunes it.
tag              None is fitted.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.card import ExpertCard
from one4all_lc.experts.text.results import Classification, Extraction
from one4all_lc.folder import read_expert
from one4all_lc.training.intervals import Array
from one4all_lc.training.kinds.examination import ask, drawn
from one4all_lc.training.kinds.rows import KindRow
from one4all_lc.training.kinds.tally import answer_f1

FITTED_ROWS = 2000
FEWEST_ROWS = 20
"""Dev rows: fewer fit nothing."""

_ALWAYS = -1e5
"""A threshold under which every reader answers."""


def with_threshold(
    card: ExpertCard,
    made: Path,
    rows: Sequence[KindRow],
    quantization: Quantization = "auto",
) -> ExpertCard:
    """Return the card with its head's threshold, where one can be fitted.

    Args:
        card: Of the expert.
        made: Its folder, whole but for the card.
        rows: The data; its `dev` rows are asked.
        quantization: How the base is served.
    """
    dev = drawn([row for row in rows if row.split == "dev"], FITTED_ROWS)
    answers_only = card.kind == "extract" and all(row.spans for row in dev)
    if card.kind == "tag" or len(dev) < FEWEST_ROWS or answers_only:
        return card
    open_ = {**card.head, "threshold": _ALWAYS if card.kind == "extract" else 0.0}
    dataclasses.replace(card, head=open_).write(made)
    shared = SharedBase.load(card.base, quantization=quantization)
    results = ask(read_expert(made, shared.facts), shared, dev)
    if card.kind == "extract":
        threshold = _of_answers(dev, [item for item in results if isinstance(item, Extraction)])
    else:
        labelled = [item for item in results if isinstance(item, Classification)]
        fit = _of_several if card.head.get("several") else _of_labels
        threshold = fit(dev, labelled)
    return dataclasses.replace(card, head={**card.head, "threshold": threshold})


def _of_labels(rows: Sequence[KindRow], results: Sequence[Classification]) -> float:
    right = [item.label in row.labels for row, item in zip(rows, results, strict=True)]
    sure = np.array([item.probability for item in results])
    return best_threshold(sure, np.where(right, 1.0, -1.0))


def _of_several(rows: Sequence[KindRow], results: Sequence[Classification]) -> float:
    likely, holds = zip(
        *(
            (probability, name in row.labels)
            for row, item in zip(rows, results, strict=True)
            for name, probability in item.probabilities.items()
        ),
        strict=True,
    )
    order = np.argsort(-np.array(likely), kind="stable")
    hits = np.cumsum(np.array(holds)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + sum(holds))
    return _between(np.array(likely)[order], int(f1.argmax()) + 1)


def _of_answers(rows: Sequence[KindRow], results: Sequence[Extraction]) -> float:
    """Return by how much a span must outscore "no answer"."""
    gains = [
        max(answer_f1(item.answer, text) for text in (row.spans[0][2], *row.also))
        if row.spans
        else -1.0
        for row, item in zip(rows, results, strict=True)
    ]
    return best_threshold(np.array([item.score for item in results]), np.array(gains))


def best_threshold(scores: Array, gains: Array) -> float:
    """Return the threshold from which on the sum of gains is most.

    Args:
        scores: (rows,) how sure each answer is.
        gains: (rows,) what giving it is worth, against giving none.
    """
    order = np.argsort(-scores, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(gains[order])])
    best = len(sums) - 1 - int(sums[::-1].argmax())  # of equals the one that answers most
    return _between(scores[order], best)


def _between(falling: Array, count: int) -> float:
    """Return what lies between the first so many of falling scores and the others."""
    if count == len(falling):
        return round(float(falling[-1]) - 1e-4, 4)
    upper = float(falling[count - 1]) if count else float(falling[0]) + 2e-4
    return round((upper + float(falling[count])) / 2, 4)
