"""The figures of experts that decide, from counts row by row, so that rows can be drawn again.

Macro-F1 is scikit-learn's, entity F1 seqeval's (micro, an entity with its exact place and type),
exact match and F1 of answers SQuAD's, without its English articles.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from one4all_lc.training.intervals import Array, Interval, percentiles
from one4all_lc.training.kinds.rows import KindRow, Span

RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class Tally:
    """What one figure is made of.

    Attributes:
        counts: (rows, groups, 2): by row and group what counts, and of how much. The figure is the
            mean over groups, those of nothing aside, of sum over sum.
    """

    counts: Array

    @property
    def rows(self) -> int:
        """How many rows count."""
        return int((self.counts[..., 1].sum(1) > 0).sum())

    @property
    def value(self) -> float:
        """The figure."""
        return float(_figure(self.counts.sum(0)))

    def interval(self) -> Interval:
        """Return its 95 % interval, by the bootstrap over rows."""
        return percentiles(self._drawn())

    def gain_interval(self, old: "Tally") -> Interval:
        """Return the interval of the difference to another's, by the paired bootstrap."""
        return percentiles(self._drawn() - old._drawn())

    def _drawn(self) -> Array:
        rows = len(self.counts)
        times = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), RESAMPLES)
        flat = self.counts.reshape(rows, -1)
        return _figure((times @ flat).reshape(RESAMPLES, *self.counts.shape[1:]))


def _figure(sums: Array) -> Array:
    """Return the figures of (..., groups, 2) sums."""
    parts, wholes = sums[..., 0], sums[..., 1]
    there = wholes > 0
    shares = np.where(there, parts / np.where(there, wholes, 1.0), 0.0)
    return np.asarray(shares.sum(-1) / np.maximum(there.sum(-1), 1))


Tallies = Mapping[str, Tally]


def tallies(kind: str, rows: Sequence[KindRow], found: Sequence[Any]) -> Tallies:
    """Return the tallies of a kind, by metric.

    Args:
        kind: Of the rows.
        rows: What is right.
        found: For each row: the labels; the entities as spans; the answer, or None.
    """
    if kind == "tag":
        return _entity_tallies(rows, found)
    if kind == "extract":
        return _answer_tallies(rows, found)
    return _label_tallies(rows, found)


def _label_tallies(rows: Sequence[KindRow], found: Sequence[Sequence[str]]) -> Tallies:
    named = {name for row in rows for name in row.labels} | {n for labels in found for n in labels}
    order = {name: i for i, name in enumerate(sorted(named))}
    right = np.zeros((len(rows), 1, 2))
    each = np.zeros((len(rows), len(order), 2))
    for i, (row, labels) in enumerate(zip(rows, found, strict=True)):
        right[i, 0] = set(row.labels) == set(labels), 1
        for name in row.labels:
            each[i, order[name]] += (name in labels, 1)  # F1 is twice the hits over both sums
        for name in labels:
            each[i, order[name]] += (name in row.labels, 1)
    return {"accuracy": Tally(right), "macro_f1": Tally(each)}


def _entity_tallies(rows: Sequence[KindRow], found: Sequence[Sequence[Span]]) -> Tallies:
    counts = np.zeros((len(rows), 1, 2))
    for i, (row, spans) in enumerate(zip(rows, found, strict=True)):
        hits = len(set(row.spans) & set(spans))
        counts[i, 0] = 2 * hits, len(row.spans) + len(spans)
    return {"entity_f1": Tally(counts)}


def _answer_tallies(rows: Sequence[KindRow], found: Sequence[str | None]) -> Tallies:
    shares = np.zeros((4, len(rows), 1, 2))
    for i, (row, answer) in enumerate(zip(rows, found, strict=True)):
        right = [row.spans[0][2], *row.also] if row.spans else []
        exact = max((float(words(answer) == words(text)) for text in right), default=0.0)
        near = max((answer_f1(answer, text) for text in right), default=0.0)
        nothing = float(answer is None)
        shares[0, i, 0] = near if right else nothing, 1
        shares[1, i, 0] = exact if right else nothing, 1
        shares[2 if right else 3, i, 0] = near if right else nothing, 1
    names = ("span_f1", "exact_match", "answerable_f1", "no_answer_accuracy")
    return {
        name: Tally(counts)
        for name, counts in zip(names, shares, strict=True)
        if counts[..., 1].any()
    }


def answer_f1(answer: str | None, right: str) -> float:
    """Return the F1 of an answer's words, as SQuAD counts."""
    mine, wanted = words(answer), words(right)
    if not mine or not wanted:
        return float(mine == wanted)
    common = sum((Counter(mine) & Counter(wanted)).values())
    return 2 * common / (len(mine) + len(wanted))


def words(text: str | None) -> list[str]:
    """Return what is compared of an answer: its words, without case and punctuation."""
    folded = unicodedata.normalize("NFKC", text or "").casefold()
    return re.sub(r"[\W_]+", " ", folded.replace("\u200c", "")).split()
