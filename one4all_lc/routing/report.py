"""A router's measurement as a report: `report.html`, PNG figures, and what a program reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from one4all_lc.folder import OOS
from one4all_lc.reports.page import Fact, Page, Picture, Table, write_report
from one4all_lc.routing import figures
from one4all_lc.routing.evaluation import NOBODY, arms, confused, per_label, summary
from one4all_lc.routing.exemplars import negatives_of
from one4all_lc.routing.measuring import Measured
from one4all_lc.routing.plane import plane
from one4all_lc.writing import replace_text

WRONG_SHOWN = 300
"""Wrong rows on the page; `wrong.jsonl` has all."""

NUMBERS_FILE, WRONG_FILE = "report.json", "wrong.jsonl"

ARMS = {
    "router": "the router",
    "oracle": "always right",
    "random": "any expert or none",
    "base": "always the base",
}


def numbers(measured: Measured, seed: int = 0) -> dict[str, Any]:
    """Return all figures of a measurement as JSON-ready values.

    Args:
        measured: The measurement.
        seed: Of the random arm.
    """
    outcome = measured.outcome
    return {
        **summary(outcome),
        "arms": arms(outcome, seed),
        "experts": experts(measured),
        "confused": [
            {"label": row[0], "routed": row[1], "rows": row[2], "share": row[3]}
            for row in confused(outcome.confusion(), outcome.labels)
        ],
        "confusion": {"labels": [*outcome.labels, OOS], "rows": outcome.confusion().tolist()},
        "fingerprint": measured.router.fingerprint,
    }


def experts(measured: Measured) -> list[dict[str, Any]]:
    """Return a row of figures for each expert, and one for what is nobody's if it was asked."""
    outcome = measured.outcome
    table = outcome.confusion()
    scores = per_label(table)
    library = tuple(measured.router.library)
    counts = [sum(item.label != OOS for item in expert.exemplars) for expert in library]
    counts.append(len(negatives_of(library)))
    own = np.diag(table)
    found: list[dict[str, Any]] = []
    for index, label in enumerate([*outcome.labels, OOS]):
        nobody = index == len(outcome.labels)
        if nobody and not table[index].any():
            continue
        found.append(
            {
                "label": label,
                "exemplars": counts[index],
                "rows": int(table[index].sum()),
                **{name: _finite(values[index]) for name, values in scores.items()},
                "taken_by_others": int(table[index, :-1].sum() - (0 if nobody else own[index])),
                "abstained": int(table[index, -1]),
            }
        )
    return found


def wrong_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return the questions that went wrong, those that the router was surest of first."""
    outcome = measured.outcome
    rows = np.flatnonzero(~outcome.right)
    sure = np.where(outcome.routed == NOBODY, -outcome.anybody, outcome.confidence)[rows]
    found = []
    for index in rows[np.argsort(-sure, kind="stable")]:
        row, route = measured.rows[index], measured.routes[index]
        near = route.nearest[0] if route.nearest else None
        found.append(
            {
                "text": row.text,
                "label": row.label if outcome.wanted[index] != NOBODY else OOS,
                "routed": measured.label(route.best),
                "likeliest": measured.label(route.experts[0].name),
                "probability": route.experts[0].probability,
                "in_scope_probability": route.in_scope_probability,
                "reason": route.reason,
                "nearest": near.text if near else None,
                "nearest_label": measured.label(near.expert) if near else None,
                "similarity": near.similarity if near else None,
            }
        )
    return found


def write(folder: str | Path, measured: Measured, title: str, summary: str, seed: int = 0) -> Path:
    """Write the whole report.

    Args:
        folder: Where; rows of data are written nowhere else.
        measured: The measurement.
        title: Of the page.
        summary: What was measured on what.
        seed: Of the random arm.

    Returns:
        The path of the page.

    Raises:
        InvalidInput: The folder cannot be written, or the extra `reports` is not installed.
    """
    folder = Path(folder)
    found, wrong = numbers(measured, seed), wrong_rows(measured)
    page = Page(title, summary, _facts(found), _parts(measured, found, wrong))
    lines = [json.dumps(row, ensure_ascii=False) for row in wrong]
    replace_text(folder / WRONG_FILE, "".join(f"{line}\n" for line in lines))
    replace_text(folder / NUMBERS_FILE, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    return write_report(folder, page)


def _facts(found: dict[str, Any]) -> list[Fact]:
    shares = [
        ("accuracy", "accuracy", "all rows; nobody's must be refused"),
        ("macro_f1", "macro-F1", "every domain counts alike"),
        ("accuracy_in_scope", "accuracy in scope", "the likeliest expert, abstaining aside"),
        ("auroc", "AUROC", "somebody's against nobody's"),
        ("retention", "retention", "questions in scope that are taken"),
        ("oos_recall", "recall of oos", "nobody's questions that are refused"),
        ("ece", "calibration error", "of the likeliest expert's probability"),
    ]
    return [
        Fact("–" if found[name] is None else f"{found[name]:.3f}", title, note)
        for name, title, note in shares
    ]


def _parts(
    measured: Measured, found: dict[str, Any], wrong: list[dict[str, Any]]
) -> list[Picture | Table]:
    outcome = measured.outcome
    return [
        _arms(found),
        _experts(found),
        _confusion(measured),
        Table(
            "Commonest mistakes",
            ("belongs to", "routed to", "rows", "share of its rows"),
            [(row["label"], row["routed"], row["rows"], row["share"]) for row in found["confused"]],
            folded=True,
        ),
        Picture(
            "risk_coverage",
            "Risk and coverage",
            figures.risk_coverage(outcome),
            "An expert answers only where the router is sure enough. The further left, the surer "
            "it must be; a confidence that means something keeps the curve low there.",
        ),
        Picture(
            "reliability",
            "Are the probabilities true?",
            figures.calibration(outcome),
            "Of the questions that the router gives 80 %, 80 % should come true: points on the "
            "dashed line. Below it the router is too sure of itself, above it too shy.",
        ),
        _map(measured),
        _wrong(wrong),
    ]


def _arms(found: dict[str, Any]) -> Table:
    fields = ("accuracy", "macro_f1", "accuracy_in_scope", "retention", "oos_recall")
    return Table(
        "Beside what it must be compared with",
        ("arm", "accuracy", "macro-F1", "accuracy in scope", "retention", "recall of oos"),
        [(ARMS[name], *(arm[field] for field in fields)) for name, arm in found["arms"].items()],
    )


def _experts(found: dict[str, Any]) -> Table:
    fields = ("label", "exemplars", "rows", "precision", "recall", "f1")
    return Table(
        "Expert by expert",
        ("label", "exemplars", "rows", "precision", "recall", "F1", "to others", "to nobody"),
        [
            (*(row[field] for field in fields), row["taken_by_others"], row["abstained"])
            for row in found["experts"]
        ],
        folded=len(found["experts"]) > 2 * figures.SHOWN,
    )


def _confusion(measured: Measured) -> Picture:
    words = "Rows are shares of a domain's own questions; the numbers count them."
    if len(measured.outcome.labels) > figures.SHOWN:
        words += (
            f" Of {len(measured.outcome.labels)} domains those with most mistakes are shown, the "
            f"rest added up as {figures.REST!r}; {NUMBERS_FILE} has the whole matrix."
        )
    return Picture("confusion", "Confusion", figures.confusion(measured.outcome), words)


def _map(measured: Measured) -> Picture:
    known = measured.router.exemplars
    names = measured.router.library.names
    owners = np.array([names.index(name) for name in known.experts])
    picture = figures.exemplar_map(plane(known.vectors, owners, 4), owners, measured.outcome.labels)
    words = (
        "Every point is an exemplar, in the four directions in which the domains differ most. "
        "Domains that lie apart in either panel are told apart; those that share a place in both "
        "may still differ in further directions."
    )
    return Picture("exemplars", "Map of the exemplars", picture, words)


def _wrong(wrong: list[dict[str, Any]]) -> Table:
    words = "Those first that the router was surest of."
    if len(wrong) > WRONG_SHOWN:
        words += f" The first {WRONG_SHOWN} of {len(wrong)}; {WRONG_FILE} has all."
    fields = ("text", "label", "routed", "probability", "in_scope_probability")
    return Table(
        "Wrong rows",
        ("question", "belongs to", "routed to", "sure of whose", "sure of anybody's", "nearest"),
        [
            (*(row[field] for field in fields), f"{row['nearest']} ({row['nearest_label']})")
            for row in wrong[:WRONG_SHOWN]
        ],
        words,
        digits=2,
        folded=True,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
