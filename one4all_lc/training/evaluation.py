"""An expert against the bare base, and against looking up, on rows that neither has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.card import PERPLEXITY
from one4all_lc.folder import Expert, read_expert
from one4all_lc.training import intervals
from one4all_lc.training.baselines import nearest_answers
from one4all_lc.training.data import Row
from one4all_lc.training.intervals import Array, Interval
from one4all_lc.training.measuring import (
    Advance,
    Asked,
    HeldOut,
    answers,
    held_out_split,
    losses,
)
from one4all_lc.training.scores import check_metric, exact_match, rouge_l, score_all, scores_of

__all__ = ["Examination", "exact_match", "examine", "held_out_split", "measure", "rouge_l"]

SCORED_ROWS = 200
"""Rows whose perplexity is measured, unless told otherwise."""

ANSWERED_ROWS = 100
"""Rows that are answered, which takes longer, unless told otherwise."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Examination:
    """What was found row by row.

    Attributes:
        expert: Who was examined.
        shared: The base as served.
        held_out: The rows.
        nats: By `base` and `expert`, (rows,) summed cross entropies of the answers.
        tokens: (rows,) tokens of the answers.
        scores: By metric, then by `base`, `expert` and `nearest`: (answered rows,) scores.
    """

    expert: Expert
    shared: SharedBase
    held_out: HeldOut
    nats: Mapping[str, Array]
    tokens: Array
    scores: Mapping[str, Mapping[str, Array]]

    def metrics(self) -> Metrics:
        """Return the figures of the card: per metric who reaches what, and how sure that is."""
        return {
            "split": self.held_out.split,
            "rows_sha256": self.held_out.sha256,
            "quantization": self.shared.quantization,
            PERPLEXITY: self._perplexity(),
            **{name: _summary(by_who) for name, by_who in self.scores.items()},
        }

    def _perplexity(self) -> Metrics:
        total = float(self.tokens.sum())
        base, expert = self.nats["base"], self.nats["expert"]
        sure = {who: intervals.of_perplexity(nats, self.tokens) for who, nats in self.nats.items()}
        ratio = intervals.of_perplexity_ratio(expert, base, self.tokens)
        return {
            **{who: round(float(np.exp(x.sum() / total)), 3) for who, x in self.nats.items()},
            "ratio": round(float(np.exp((expert - base).sum() / total)), 4),
            "rows": len(self.tokens),
            "tokens": int(total),
            "intervals": _rounded({**sure, "ratio": ratio}),
        }


def measure(
    folder: str | Path,
    rows: Sequence[Row],
    base: str,
    *,
    quantization: Quantization = "auto",
    scored: int = SCORED_ROWS,
    answered: int = ANSWERED_ROWS,
) -> Metrics:
    """Compare an expert with the bare base on held-out rows.

    The arguments are those of `examine`.

    Returns:
        Per metric the values of `base` and `expert`, and the number of rows.
    """
    return examine(
        folder, rows, base, quantization=quantization, scored=scored, answered=answered
    ).metrics()


def examine(
    folder: str | Path,
    rows: Sequence[Row],
    base: str,
    *,
    quantization: Quantization = "auto",
    scored: int = SCORED_ROWS,
    answered: int = ANSWERED_ROWS,
    scorer: str | None = None,
    advance: Advance | None = None,
) -> Examination:
    """Ask an expert and the bare base what was held out, and look the same up in what was taught.

    Both get the expert's system prompt, so that the difference is the adapter's.

    Args:
        folder: The expert's folder.
        rows: The data; its `test` rows are used, or else its `dev` rows.
        base: Id of the base, loaded as it is served.
        quantization: How.
        scored: Rows for the perplexity, drawn by a fixed seed.
        answered: Of these, rows that are answered, greedily.
        scorer: `module:function` of a metric of the user's own.
        advance: Called for every row that is read or answered, by base and by expert.

    Raises:
        InvalidInput: No row was held out, none fits the base's context, or a metric is missing.
        UnfitExpert: The expert must not be used with the base.
    """
    by_name = scores_of(scorer)
    held_out = HeldOut.drawn(rows, scored, answered)
    shared = SharedBase.load(base, quantization=quantization)
    expert = read_expert(folder, shared.facts)
    check_metric(expert.card.metric, by_name)
    served = Asked.of(expert)
    held_out = held_out.that_fit(shared, [served])
    who = {"base": served.without_adapter(), "expert": served}
    read = {name: losses(shared, held_out.rows, asked, advance) for name, asked in who.items()}
    asked_rows = held_out.to_answer
    given = answers(shared, [(asked, asked_rows) for asked in who.values()], advance)
    by_who = dict(zip(who, given, strict=True))
    looked_up = nearest_answers(rows, [row.question for row in asked_rows])
    if looked_up is not None:
        by_who["nearest"] = looked_up
    wanted = [row.answer for row in asked_rows]
    scores = {
        name: {one: score_all(name, score, texts, wanted) for one, texts in by_who.items()}
        for name, score in by_name.items()
    }
    nats = {name: found[0] for name, found in read.items()}
    return Examination(expert, shared, held_out, nats, read["expert"][1], scores)


def _summary(by_who: Mapping[str, Array]) -> Metrics:
    expert, base = by_who["expert"], by_who["base"]
    sure = {who: intervals.of_mean(values) for who, values in by_who.items()}
    gain = intervals.of_difference(expert, base)
    return {
        **{who: round(float(values.mean()), 4) for who, values in by_who.items()},
        "gain": round(float((expert - base).mean()), 4),
        "rows": len(expert),
        "intervals": _rounded({**sure, "gain": gain}),
    }


def _rounded(sure: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {who: [round(low, 4), round(high, 4)] for who, (low, high) in sure.items()}
