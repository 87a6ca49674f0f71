"""Figures that several reports draw, each as the bytes of a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from one4all_lc.reports.canvas import DASHES, FAINT, INK, PALETTE, blank, named, png, ruled, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANNOTATED = 900
"""Cells up to which a heat map says their values."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        name: In the legend; empty for none.
        x: (n,) positions.
        y: (n,) values.
        color: None takes the next one.
        dashes: matplotlib's line style; None takes the one that goes with the colour.
        marks: Whether each point gets a mark.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str | None = None
    dashes: str | None = None
    marks: bool = False


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    *,
    x: str = "",
    y: str = "",
    form: str = "{:.2f}",
    written: Sequence[Sequence[str]] | None = None,
    limits: tuple[float, float] | None = None,
    colors: str = "Blues",
) -> bytes:
    """Draw a table of numbers as coloured cells.

    Args:
        values: (r, c) numbers; NaN stays white.
        rows: The r rows' names.
        columns: The c columns' names.
        title: Over it.
        x: What the columns are.
        y: What the rows are.
        form: How a value is written in its cell.
        written: What else is written, r times c texts; cells are not written on where they are too
            many to be read.
        limits: The values of the lightest and the darkest colour; None takes the least and the
            most that there are.
        colors: matplotlib's name of a map of colours: "RdBu" shows what is over and what is under.

    Returns:
        The PNG.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    table = np.asarray(values, float)
    cell, size = _cell(table.shape)
    width, height = 2.6 + cell[0] * len(columns), 1.5 + cell[1] * len(rows)
    figure, (panel,) = blank(max(width, 4.5), max(height, 2.6), title)
    low, high = limits or _range(table)
    image = panel.imshow(table, cmap=colors, vmin=low, vmax=high, aspect="auto")
    named(panel, "", x, y)
    tick(panel, "x", columns, size, rotation=45, ha="right", rotation_mode="anchor")
    tick(panel, "y", rows, size)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.2)
    panel.tick_params(which="minor", length=0)
    if table.size <= ANNOTATED:
        _write(panel, image, table, form, written, size)
    return png(figure)


def curves(
    lines: Sequence[Curve],
    title: str = "",
    *,
    x: str = "",
    y: str = "",
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    points: Sequence[tuple[float, float, str]] = (),
) -> bytes:
    """Draw lines, with a legend if they are several, and points that are worth a word.

    Args:
        lines: The lines.
        title: Over them.
        x: What stands on the horizontal axis.
        y: What stands on the vertical axis.
        x_limits: The first and the last value that is shown; None shows all.
        y_limits: The same, upwards.
        points: (x, y, words) of single points.

    Returns:
        The PNG.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    figure, (panel,) = blank(6.4, 4.2, title)
    ruled(panel)
    named(panel, "", x, y)
    for index, line in enumerate(lines):
        panel.plot(
            np.asarray(line.x),
            np.asarray(line.y),
            color=line.color or PALETTE[index % len(PALETTE)],
            linestyle=line.dashes or DASHES[index // len(PALETTE) % len(DASHES)],
            linewidth=2,
            marker="o" if line.marks else None,
            markersize=5,
        )
    if x_limits:
        panel.set_xlim(*x_limits)
    if y_limits:
        panel.set_ylim(*y_limits)
    for horizontal, vertical, words in points:
        _point(panel, horizontal, vertical, words)
    if any(line.name for line in lines):
        drawn = [(mark, line.name) for mark, line in zip(panel.lines, lines, strict=False)]
        legend(panel, [pair for pair in drawn if pair[1]])
    return png(figure)


def legend(panel: "Axes", entries: Sequence[tuple[Any, str]], **style: Any) -> None:
    """Put a legend of (mark, name) where there is room; `$` in a name begins no formula."""
    marks, names = [mark for mark, _ in entries], [name for _, name in entries]
    box = panel.legend(marks, names, frameon=False, fontsize=9, labelcolor=INK, **style)
    for text in box.get_texts():
        text.set_parse_math(False)


def _point(panel: "Axes", x: float, y: float, words: str) -> None:
    panel.plot([x], [y], "o", color=INK, markersize=7, markeredgecolor="white", zorder=4)
    low, high = panel.get_xlim()
    right = x > (low + high) / 2  # the words stand where there is room for them
    panel.annotate(
        words,
        (x, y),
        (-9, 9) if right else (9, -12),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=9,
        color=INK,
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _cell(shape: tuple[int, ...]) -> tuple[tuple[float, float], float]:
    """Return the width and height of a cell in inches, and the size of the letters."""
    most = max(shape)
    if most <= 16:
        return (0.62, 0.42), 9
    return ((0.42, 0.32), 7.5) if most <= 30 else ((0.2, 0.2), 6)


def _range(table: NDArray[np.float64]) -> tuple[float, float]:
    known = table[np.isfinite(table)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _write(
    panel: "Axes",
    image: Any,
    table: NDArray[np.float64],
    form: str,
    written: Sequence[Sequence[str]] | None,
    size: float,
) -> None:
    """Write each cell's value on it, white on dark."""
    for (row, column), value in np.ndenumerate(table):
        if not np.isfinite(value):
            continue
        words = written[row][column] if written is not None else form.format(value)
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        panel.text(
            column,
            row,
            words,
            ha="center",
            va="center",
            fontsize=size - 0.5,
            color="white" if dark else (INK if value else FAINT),
            parse_math=False,
        )
