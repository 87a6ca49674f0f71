"""The gate before a publication: what measures worse than what is in place does not replace it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.card import CARD_FILE, PERPLEXITY, ExpertCard
from one4all_lc.errors import InvalidInput, WorseExpert
from one4all_lc.folder import read_expert
from one4all_lc.training import intervals
from one4all_lc.training.data import Row
from one4all_lc.training.evaluation import Examination
from one4all_lc.training.intervals import Array, Interval
from one4all_lc.training.measuring import Asked, answers, losses
from one4all_lc.training.scores import check_metric, score_all, scores_of


@dataclass(frozen=True)
class Verdict:
    """How a new version compares with what it would replace, on the same rows.

    Attributes:
        name: The expert's.
        against: `version 3`, or `the base` where there is no version in place.
        metric: What decides.
        new: Its value of the new version.
        old: Of what is in place.
        gain: By how much the new one is better: the difference, or for perplexities, of which the
            lower is better, the share that is saved.
        interval: 95 % of the gain, by the paired bootstrap; None if only two cards were compared.
        rows: On which it was measured.
        worse: Whether it may not replace it.
    """

    name: str
    against: str
    metric: str
    new: float
    old: float
    gain: float
    interval: Interval | None
    rows: int
    worse: bool

    def __str__(self) -> str:
        sure = ""
        if self.interval:
            low, high = self.interval
            sure = f", 95 % interval {low:+.3f} to {high:+.3f}"
        return (
            f"{self.name}: {self.metric} {self.new:.3f} on {self.rows} held-out rows where "
            f"{self.against} has {self.old:.3f} (gain {self.gain:+.3f}{sure})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        numbers = {name: round(v, 4) for name, v in values.items() if type(v) is float}
        sure = [round(value, 4) for value in self.interval] if self.interval else None
        return {**values, **numbers, "interval": sure}

    def require(self, stays: Path) -> None:
        """Refuse what is worse.

        Args:
            stays: Where the new version lies, for the message.

        Raises:
            WorseExpert: It is.
        """
        if self.worse:
            msg = (
                f"{self} and is not published; it stays in {stays}: train it longer or on more "
                "rows, or publish it all the same with --force."
            )
            raise WorseExpert(msg)


def compare(new: Examination, folder: Path, rows: Sequence[Row], **settings: Any) -> Verdict:
    """Compare a version that was examined with what is in place.

    Args:
        new: The examination of the new version.
        folder: Where it would lie; without an expert there, the base alone is what it must beat.
        rows: The data.
        **settings: `quantization`, `scorer` and `tolerance`, as in `compare_with`.
    """
    if not (folder / CARD_FILE).exists():
        return _against_base(new, settings.get("tolerance", 0.0))
    return compare_with(new, folder, rows, **settings)


def compare_with(
    new: Examination,
    folder: Path,
    rows: Sequence[Row],
    *,
    quantization: Quantization = "auto",
    scorer: str | None = None,
    tolerance: float = 0.0,
) -> Verdict:
    """Ask the version in place, by its own prompt, what the new one was asked.

    Args:
        new: The examination of the new version.
        folder: The expert in place, asked on the base that it was made for.
        rows: The data, of which the new version was asked some.
        quantization: How that base is served.
        scorer: `module:function` of a metric of the user's own.
        tolerance: By how much the new version may be worse.

    Raises:
        UnfitExpert: What is in place cannot be used.
    """
    card = ExpertCard.read(folder)
    own_base = card.fingerprint == new.shared.facts.fingerprint
    shared = new.shared if own_base else SharedBase.load(card.base, quantization=quantization)
    old = read_expert(folder, shared.facts)
    asked = Asked.of(old)
    fitting = new.held_out.that_fit(shared, [asked])
    kept = np.array([row in fitting.rows for row in new.held_out.rows])
    nats, _ = losses(shared, fitting.rows, asked)
    metric, by_name = new.expert.card.metric, scores_of(scorer)
    check_metric(metric, by_name)
    answered = new.held_out.to_answer
    both = np.array([row in fitting.rows for row in answered])
    if metric == PERPLEXITY or not both.any():
        scores = None
    else:
        same = [row for row, fits in zip(answered, both, strict=True) if fits]
        (given,) = answers(shared, [(asked, same)])
        found = score_all(metric, by_name[metric], given, [row.answer for row in same])
        scores = new.scores[metric]["expert"][both], found
    read = new.nats["expert"][kept], nats, new.tokens[kept]
    return _verdict(new, f"version {card.version}", scores, read, tolerance)


def compare_cards(new: ExpertCard, old: ExpertCard | None, tolerance: float = 0.0) -> Verdict:
    """Compare by what two cards say, which is fair only if both were measured alike.

    Args:
        new: The card of the new version.
        old: Of what is in place; None if there is nothing, and the base is what it must beat.
        tolerance: By how much the new version may be worse.

    Raises:
        InvalidInput: The cards cannot be compared: the rows must be given.
    """
    metric, mine = new.metric, new.metrics
    theirs = mine if old is None else old.metrics
    same = ("rows_sha256", "quantization")
    comparable = metric in mine and all(
        mine.get(name) and mine.get(name) == theirs.get(name) for name in same
    )
    if not comparable or (old is not None and old.fingerprint != new.fingerprint):
        what = "what is in place" if old else "the base"
        msg = (
            f"The cards do not say how {new.name!r} compares with {what} on the same held-out "
            "rows: give them with --data."
        )
        raise InvalidInput(msg)
    who = "base" if old is None else "expert"
    one, other = float(mine[metric]["expert"]), float(theirs[metric][who])
    gain = 1 - one / other if metric == PERPLEXITY else one - other
    against = f"version {old.version}" if old else "the base"
    rows, worse = int(mine[metric]["rows"]), gain < -tolerance
    return Verdict(new.name, against, metric, one, other, gain, None, rows, worse)


def no_rows() -> InvalidInput:
    """Return the error for data from which no row was held out."""
    msg = "None of the rows has split 'test' or 'dev': hold some out, to compare versions with."
    return InvalidInput(msg)


def _against_base(new: Examination, tolerance: float) -> Verdict:
    metric = new.expert.card.metric
    scores = None
    if metric != PERPLEXITY:
        scores = new.scores[metric]["expert"], new.scores[metric]["base"]
    read = new.nats["expert"], new.nats["base"], new.tokens
    return _verdict(new, "the base", scores, read, tolerance)


def _verdict(
    new: Examination,
    against: str,
    scores: tuple[Array, Array] | None,
    read: tuple[Array, Array, Array],
    tolerance: float,
) -> Verdict:
    """Decide by the scores, or by the perplexity where that decides or all else is equal."""
    name, by_perplexity = new.expert.name, _perplexities(*read)
    if scores is None:
        one, other, gain, sure = by_perplexity
        rows, worse = len(read[2]), gain < -tolerance
        return Verdict(name, against, PERPLEXITY, one, other, gain, sure, rows, worse)
    mine, theirs = scores
    gain = float((mine - theirs).mean())
    sure = intervals.of_difference(mine, theirs)
    metric = new.expert.card.metric
    if gain == 0 and by_perplexity[3][1] < -tolerance:  # surely worse where the answers tie
        one, other, gain, sure = by_perplexity
        return Verdict(name, against, PERPLEXITY, one, other, gain, sure, len(read[2]), worse=True)
    means = float(mine.mean()), float(theirs.mean())
    return Verdict(name, against, metric, *means, gain, sure, len(mine), gain < -tolerance)


def _perplexities(
    mine: Array, theirs: Array, tokens: Array
) -> tuple[float, float, float, Interval]:
    """Return both perplexities, the share that is saved, and its interval."""
    one, other = (float(np.exp(nats.sum() / tokens.sum())) for nats in (mine, theirs))
    low, high = intervals.of_perplexity_ratio(mine, theirs, tokens)
    return one, other, 1 - one / other, (1 - high, 1 - low)
