"""An expert that decides on rows that it has not seen, asked as it is served."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.card import CARD_FILE, ExpertCard
from one4all_lc.engine.encoders import EncoderEngine
from one4all_lc.errors import InvalidInput, One4AllError
from one4all_lc.experts.text import text_expert
from one4all_lc.experts.text.results import Classification, Entities, Extraction, Result
from one4all_lc.folder import Expert, read_expert
from one4all_lc.library import Library
from one4all_lc.training.gate import Verdict
from one4all_lc.training.kinds.examples import Labelling
from one4all_lc.training.kinds.rows import KindRow
from one4all_lc.training.kinds.tally import Tallies, tallies
from one4all_lc.training.measuring import held_out_split

PARTY = 128
"""Rows that are asked at once."""


@dataclass(frozen=True)
class KindExamination:
    """What was found.

    Attributes:
        expert: Who was examined.
        shared: The base as served.
        split: Of the rows.
        rows: Those that were asked.
        by_who: By `base` and `expert`: tallies by metric. An encoder alone decides nothing; the
            base's are those of the label that most training rows have, of no entity, no answer.
        decided: Of labelled rows the share that the expert does not abstain on, and its accuracy
            there.
    """

    expert: Expert
    shared: SharedBase
    split: str
    rows: Sequence[KindRow]
    by_who: Mapping[str, Tallies]
    decided: Mapping[str, float]

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the card."""
        texts = [[*row.texts, row.answer] for row in self.rows]
        told = json.dumps(texts, ensure_ascii=False).encode()
        return {
            "split": self.split,
            "rows_sha256": hashlib.sha256(told).hexdigest(),
            "quantization": self.shared.quantization,
            **{name: self._figures(name) for name in self.by_who["expert"]},
            **{name: round(value, 4) for name, value in self.decided.items()},
        }

    def _figures(self, name: str) -> dict[str, Any]:
        expert, base = self.by_who["expert"][name], self.by_who["base"][name]
        sure = {"base": base.interval(), "expert": expert.interval()}
        sure["gain"] = expert.gain_interval(base)
        return {
            "base": round(base.value, 4),
            "expert": round(expert.value, 4),
            "gain": round(expert.value - base.value, 4),
            "rows": expert.rows,
            "intervals": {who: [round(end, 4) for end in ends] for who, ends in sure.items()},
        }

    def against(self, folder: Path, tolerance: float) -> Verdict:
        """Hold the expert against what lies in a folder, asked the same; or against the base."""
        card, metric = self.expert.card, self.expert.card.metric
        if metric not in self.by_who["expert"]:
            msg = f"{metric!r} cannot be measured on these rows: name another --metric."
            raise InvalidInput(msg)
        old, against = self.by_who["base"], "the base"
        if (folder / CARD_FILE).exists():
            present = ExpertCard.read(folder)
            same = present.fingerprint == card.fingerprint
            shared = self.shared if same else SharedBase.load(present.base)
            results = ask(read_expert(folder, shared.facts), shared, self.rows)
            old = tallies(card.kind, self.rows, [likeliest(item, card) for item in results])
            against = f"version {present.version}"
        mine, theirs = self.by_who["expert"][metric], old[metric]
        gain = mine.value - theirs.value
        return Verdict(
            card.name,
            against,
            metric,
            mine.value,
            theirs.value,
            gain,
            mine.gain_interval(theirs),
            mine.rows,
            worse=gain < -tolerance,
        )


def examine_kind(
    folder: str | Path,
    rows: Sequence[KindRow],
    base: str,
    *,
    quantization: Quantization = "auto",
    limit: int | None = None,
    advance: Callable[[], None] | None = None,
) -> KindExamination:
    """Ask an expert what was held out.

    Args:
        folder: The expert's.
        rows: The data; its `test` rows are used, or else its `dev` rows.
        base: Id of the base, loaded as it is served.
        quantization: How.
        limit: Rows at most, drawn by a fixed seed; None takes all.
        advance: Called for every row.

    Raises:
        InvalidInput: No row was held out.
        UnfitExpert: The expert must not be used with the base.
    """
    split = held_out_split(rows)
    if split is None:
        msg = "None of the rows has split 'test' or 'dev': there is nothing to measure with."
        raise InvalidInput(msg)
    asked = drawn([row for row in rows if row.split == split], limit)
    shared = SharedBase.load(base, quantization=quantization)
    expert = read_expert(folder, shared.facts)
    results = ask(expert, shared, asked, advance)
    kind = expert.card.kind
    found = {
        "base": tallies(kind, asked, [_of_the_base(expert.card, rows)] * len(asked)),
        "expert": tallies(kind, asked, [likeliest(item, expert.card) for item in results]),
    }
    return KindExamination(expert, shared, split, asked, found, _decided(asked, results))


def drawn(rows: Sequence[KindRow], limit: int | None) -> list[KindRow]:
    """Return so many rows, drawn by a fixed seed; all for None."""
    from random import Random

    return list(rows) if limit is None else Random(0).sample(rows, min(limit, len(rows)))


def ask(
    expert: Expert,
    shared: SharedBase,
    rows: Sequence[KindRow],
    advance: Callable[[], None] | None = None,
) -> list[Result]:
    """Return what an expert finds in each row, as served by the base's engine.

    Raises:
        InvalidInput: A row cannot be read by the expert.
    """
    library = Library.of([expert], shared.facts)
    served = text_expert(engine=EncoderEngine.of(shared), library=library, model=expert.name)
    found: list[Result] = []
    for start in range(0, len(rows), PARTY):
        party = rows[start : start + PARTY]
        asked = [_asked(expert.card.kind, row) for row in party]
        for row, result in zip(party, served.batch(asked, return_exceptions=True), strict=True):
            if isinstance(result, One4AllError):
                msg = f"{row.place} cannot be asked: {result}"
                raise InvalidInput(msg)
            found.append(result)
            if advance:
                advance()
    return found


def _asked(kind: str, row: KindRow) -> Any:
    if kind == "pair":
        return dict(zip(("premise", "hypothesis"), row.texts, strict=True))
    if kind == "extract":
        return dict(zip(("question", "context"), row.texts, strict=True))
    return row.texts[0]


def likeliest(result: Result, card: ExpertCard) -> Any:
    """Return what is held against the right: an expert that abstains has a likeliest label too."""
    if isinstance(result, Classification):
        if card.head.get("several"):
            return tuple(result.labels)
        return tuple(result.labels) or (next(iter(result.probabilities)),)
    if isinstance(result, Entities):
        return tuple((item.start, item.end, item.label) for item in result.entities)
    assert isinstance(result, Extraction)
    return result.answer


def _of_the_base(card: ExpertCard, rows: Sequence[KindRow]) -> Any:
    if card.kind == "tag":
        return ()
    if card.kind == "extract":
        return None
    return (Labelling(card.kind, card.labels).most_frequent(rows),)


def _decided(rows: Sequence[KindRow], results: Sequence[Result]) -> dict[str, float]:
    pairs = [
        (row, item)
        for row, item in zip(rows, results, strict=True)
        if isinstance(item, Classification) and not item.abstained
    ]
    if not pairs or not isinstance(results[0], Classification):
        return {}
    right = sum(set(row.labels) == set(item.labels) for row, item in pairs)
    return {"coverage": len(pairs) / len(rows), "accuracy_decided": right / len(pairs)}
