"""From a finished folder to one that is proven and in place: measured, held against, published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from one4all_lc.base.loading import Quantization
from one4all_lc.card import CARD_FILE, METRICS_OF, ExpertCard
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert, read_expert
from one4all_lc.head import CHAT
from one4all_lc.publishing import KEPT, publish
from one4all_lc.training.data import Row
from one4all_lc.training.evaluation import ANSWERED_ROWS, SCORED_ROWS, Examination, examine
from one4all_lc.training.gate import Verdict, compare, compare_cards, no_rows
from one4all_lc.training.kinds.examination import KindExamination, examine_kind
from one4all_lc.training.kinds.thresholds import with_threshold
from one4all_lc.training.measuring import Advance, held_out_split
from one4all_lc.training.scores import check_metric, scores_of

Found = Examination | KindExamination


@dataclass(frozen=True)
class Publication:
    """How an expert is measured, and what it takes to be published.

    Attributes:
        gate: Whether it must not be worse than what is in place; without an expert there, not
            worse than the base.
        tolerance: By how much it may be worse: in the metric's own unit, for perplexities as a
            share.
        scorer: `module:function` of a metric of the user's own.
        keep: Old versions that are kept.
        quantization: How the base is served.
        scored: Held-out rows whose perplexity is measured.
        answered: Of these, rows that are answered.
        decided: Held-out rows that an expert that decides is asked; None asks all.
        advance: Called for every row that is measured.
    """

    gate: bool = False
    tolerance: float = 0.0
    scorer: str | None = None
    keep: int = KEPT
    quantization: Quantization = "auto"
    scored: int = SCORED_ROWS
    answered: int = ANSWERED_ROWS
    decided: int | None = None
    advance: Advance | None = None

    def check(self, metric: str, kind: str = CHAT) -> None:
        """Refuse before a training what would be refused after it.

        Raises:
            InvalidInput: A metric is not measured, or a package that measures is missing.
        """
        if kind == CHAT:
            check_metric(metric, scores_of(self.scorer))
        elif metric not in METRICS_OF[kind]:
            msg = f"The metric of a {kind} expert is {metric!r}: use one of {[*METRICS_OF[kind]]}."
            raise InvalidInput(msg)

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Refuse rows that the gate has nothing to compare with in.

        Raises:
            InvalidInput: None of them was held out.
        """
        if self.gate and held_out_split(rows) is None:
            raise no_rows()

    def publish(self, card: ExpertCard, made: Path, folder: Path, rows: Sequence[Any]) -> Expert:
        """Write the card, measure, and put the expert in place.

        Args:
            card: The card without metrics.
            made: The finished folder.
            folder: Where the expert should lie.
            rows: The data; without held-out rows nothing is measured.

        Raises:
            WorseExpert: The gate is asked for and the expert is worse.
        """
        if card.kind != CHAT:
            card = with_threshold(card, made, rows, self.quantization)
        card.write(made)
        if held_out_split(rows):
            found = self.examine(made, rows, card.base)
            replace(card, metrics=found.metrics()).write(made)
            if self.gate:
                self.verdict(found, folder, rows).require(made)
        return publish(made, folder, keep=self.keep)

    def examine(self, folder: Path, rows: Sequence[Any], base: str) -> Found:
        """Ask the expert and the base what was held out."""
        if ExpertCard.read(folder).kind != CHAT:
            return examine_kind(
                folder,
                rows,
                base,
                quantization=self.quantization,
                limit=self.decided,
                advance=self.advance,
            )
        return examine(
            folder,
            rows,
            base,
            quantization=self.quantization,
            scored=self.scored,
            answered=self.answered,
            scorer=self.scorer,
            advance=self.advance,
        )

    def verdict(self, new: Found, folder: Path, rows: Sequence[Any]) -> Verdict:
        """Hold the new version against what is in place."""
        if isinstance(new, KindExamination):
            return new.against(folder, self.tolerance)
        return compare(
            new,
            folder,
            rows,
            quantization=self.quantization,
            scorer=self.scorer,
            tolerance=self.tolerance,
        )


def publish_if_not_worse(
    made: str | Path,
    folder: str | Path,
    rows: Sequence[Any] = (),
    *,
    publication: Publication | None = None,
    base: str | None = None,
) -> tuple[Expert, Verdict | None]:
    """Put a finished expert folder in place if it is not worse than what is there.

    Args:
        made: The finished folder; it stays where it is, its card as it was.
        folder: Where the expert should lie.
        rows: The data that both are asked; without rows their cards are compared, which must have
            been measured on the same ones.
        publication: How it is measured; `gate=False` publishes whatever it measures.
        base: The base, if not by the id in the card.

    Returns:
        The expert in place, and the verdict; None without a gate.

    Raises:
        WorseExpert: It is worse.
        InvalidInput: There are no rows, and the cards cannot be compared.
        UnfitExpert: The folder must not be used.
    """
    made, folder = Path(made).resolve(), Path(folder)
    how = publication or Publication(gate=True)
    verdict = None
    if how.gate:
        card = read_expert(made).card
        if rows:
            found = how.examine(made, rows, base or card.base)
            verdict = how.verdict(found, folder, rows)
        else:
            present = ExpertCard.read(folder) if (folder / CARD_FILE).exists() else None
            verdict = compare_cards(card, present, how.tolerance)
        verdict.require(made)
    return publish(made, folder, keep=how.keep), verdict
