"""Figures of a router's measurement, each as the bytes of a PNG."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from one4all_lc.folder import OOS
from one4all_lc.reports.canvas import (
    FAINT,
    INK,
    MARKERS,
    PALETTE,
    blank,
    clipped,
    named,
    png,
    ruled,
)
from one4all_lc.reports.figures import Curve, curves, heat_map, legend
from one4all_lc.routing.evaluation import Floats, Ints, Outcome, as_routed, reliability
from one4all_lc.routing.evaluation import risk_coverage as risk_and_coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 24
"""Domains that one figure can show by name."""
REST = "all others"


def confusion(outcome: Outcome) -> bytes:
    """Draw where questions go, as shares of their domain; of many domains the most confused."""
    table, names = outcome.confusion(), [*outcome.labels, OOS]
    if len(names) > SHOWN + 1:
        table, names = folded(table, names, most_confused(table))
    columns = ["nobody" if name == OOS else name for name in names]
    asked = table.sum(1) > 0
    table, names = table[asked], [name for name, some in zip(names, asked, strict=True) if some]
    return heat_map(
        table / table.sum(1, keepdims=True),
        names,
        columns,
        "Where questions go",
        x="routed to",
        y="belongs to",
        written=[[str(value) if value else "" for value in row] for row in table],
        limits=(0, 1),
    )


def most_confused(table: Ints, most: int = SHOWN) -> list[int]:
    """Choose the domains with most mistakes in either direction, and nobody, in their order."""
    mistakes = table.sum(0) + table.sum(1) - 2 * np.diag(table)
    order = np.argsort(-mistakes[:-1], kind="stable")[: most - 1]
    return [*sorted(int(index) for index in order), len(table) - 1]


def folded(table: Ints, names: Sequence[str], kept: Sequence[int]) -> tuple[Ints, list[str]]:
    """Add up the rows and columns of all domains but the kept ones."""
    place = np.full(len(names), len(kept))
    place[list(kept)] = range(len(kept))
    smaller = np.zeros((len(kept) + 1,) * 2, table.dtype)
    np.add.at(smaller, np.ix_(place, place), table)
    return smaller, [*(names[index] for index in kept), REST]


def risk_coverage(outcome: Outcome) -> bytes:
    """Draw the share of wrong answers against the share of questions that experts answer."""
    coverage, risk = risk_and_coverage(outcome)
    wrong = np.sort((outcome.likeliest != outcome.wanted).astype(float))
    best = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    taken, mistaken = as_routed(outcome)
    lines = [
        Curve("the router", coverage, risk, PALETTE[0]),
        Curve("no confidence at all", [0, 1], [wrong.mean()] * 2, FAINT, "--"),
        Curve("perfect confidence", coverage, best, PALETTE[2], "--"),
    ]
    return curves(
        lines,
        "What abstaining buys",
        x="coverage: share of questions that an expert answers",
        y="risk: share of these that are wrong",
        x_limits=(0, 1.02),
        y_limits=(-0.005, max(1.3 * float(risk.max()), 0.05)),
        points=[(taken, mistaken, f"as routed: {mistaken:.1%} wrong")],
    )


def calibration(outcome: Outcome) -> bytes:
    """Draw stated probabilities against what came true: whose question it is, and if anybody's."""
    figure, panels = blank(9.6, 4.4, columns=2)
    known = outcome.known
    right = outcome.likeliest == outcome.wanted
    _reliability(panels[0], "Whose question?", outcome.probability[known], right[known])
    _reliability(panels[1], "Anybody's question?", outcome.anybody, known)
    return png(figure)


def _reliability(panel: "Axes", title: str, probability: Floats, right: NDArray[np.bool_]) -> None:
    ruled(panel)
    named(panel, title, "probability, as the router says", "share that came true")
    panel.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
    if len(probability):
        said, true, count = reliability(probability, right)
        error = np.average(np.abs(said - true), weights=count)
        spread = np.sqrt(np.maximum(true * (1 - true), 1e-4) / count)
        panel.errorbar(said, true, 2 * spread, fmt="none", ecolor=PALETTE[4], elinewidth=2)
        panel.plot(said, true, "o-", color=PALETTE[0], linewidth=2, markersize=5)
        words = f"calibration error {error:.3f}\n{len(said)} bins of {count[0]} rows, ±2 s.e."
        panel.text(0.03, 0.97, words, va="top", fontsize=9, color=INK, transform=panel.transAxes)
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)


def exemplar_map(points: Floats, owners: NDArray[np.intp], labels: Sequence[str]) -> bytes:
    """Draw the exemplars in four discriminant directions, two by two.

    Args:
        points: (n, 4) their places.
        owners: (n,) indices of their domains.
        labels: The domains' names; of many, those of most spread are named.
    """
    few = len(labels) <= SHOWN
    figure, panels = blank(12.6 if few else 13.5, 5.6, columns=2)
    for number, panel in enumerate(panels):
        pair = points[:, 2 * number : 2 * number + 2]
        named(panel, f"Directions {2 * number + 1} and {2 * number + 2}")
        panel.set_xticks([])
        panel.set_yticks([])
        marks = _marked(panel, pair, owners, labels, few=few)
        _name(panel, pair, owners, labels)
    if few:
        legend(panels[-1], marks, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return png(figure)


def _marked(
    panel: "Axes", pair: Floats, owners: NDArray[np.intp], labels: Sequence[str], *, few: bool
) -> list[tuple[object, str]]:
    """Give each domain a colour and a mark; many share them, and are drawn fainter."""
    marks: list[tuple[object, str]] = []
    for index, label in enumerate(labels):
        mine = pair[owners == index]
        style: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[(index // len(PALETTE) + index) % len(MARKERS)],
            "s": 24 if few else 8,
            "alpha": 0.7 if few else 0.4,
            "linewidths": 0.3 if few else 0,
        }
        marks.append((panel.scatter(mine[:, 0], mine[:, 1], **style), clipped(label)))
    return marks


def _name(panel: "Axes", pair: Floats, owners: NDArray[np.intp], labels: Sequence[str]) -> None:
    """Write domains' names at their middles, those far out first, wherever there is room."""
    middles = np.array([np.median(pair[owners == index], axis=0) for index in range(len(labels))])
    size = np.ptp(pair, axis=0).clip(1e-9)
    away = np.linalg.norm((middles - middles.mean(0)) / size, axis=1)
    placed: list[tuple[NDArray[np.float64], int]] = []
    for index in np.argsort(-away, kind="stable"):
        middle, name = middles[index] / size, clipped(labels[index], 20)
        # A letter covers about a hundredth of the panel's width, a line a thirtieth of its height.
        if any(
            abs(middle[0] - other[0]) < 0.0075 * (len(name) + letters)
            and abs(middle[1] - other[1]) < 0.035
            for other, letters in placed
        ):
            continue
        placed.append((middle, len(name)))
        panel.text(
            float(middles[index][0]),
            float(middles[index][1]),
            name,
            fontsize=8,
            color=INK,
            ha="center",
            va="center",
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )
