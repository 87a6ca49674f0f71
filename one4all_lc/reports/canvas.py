"""A figure without pyplot: what all figures of a report have in common."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#22303c", "#6b7a86", "#e3e8ec"
DOTS_PER_INCH = 144

# Okabe and Ito's colours, told apart by colour-blind readers too; the yellow is darkened for white
# paper. Source: https://jfly.uni-koeln.de/color/
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a7d00", "#4d4d4d")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")


def needed(package: str) -> InvalidInput:
    """Return the error for a package of the extra `reports` that is not installed."""
    msg = f"A report needs {package}: pip install 'one4all_lc[reports]'."
    return InvalidInput(msg)


def blank(
    width: float, height: float, title: str = "", columns: int = 1
) -> "tuple[Figure, list[Axes]]":
    """Make an empty figure.

    Args:
        width: In inches.
        height: In inches.
        title: Over the first panel.
        columns: Panels, side by side.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise needed("matplotlib") from None
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for panel in panels:
        panel.tick_params(colors=FAINT, labelsize=9, length=0)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
    if title:
        named(panels[0], title)
    return figure, panels


def named(panel: "Axes", title: str, x: str = "", y: str = "") -> None:
    """Give a panel its title and the names of its axes, as they are: `$` begins no formula."""
    style: dict[str, Any] = {"parse_math": False}
    if title:
        panel.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, **style)
    panel.set_xlabel(x, fontsize=9.5, color=FAINT, **style)
    panel.set_ylabel(y, fontsize=9.5, color=FAINT, **style)


def ruled(panel: "Axes") -> None:
    """Rule a panel behind what is drawn."""
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)


def tick(panel: "Axes", axis: str, labels: Sequence[str], size: float, **style: Any) -> None:
    """Put one label at each of the positions 0, 1, 2, ... of an axis."""
    place = panel.set_xticks if axis == "x" else panel.set_yticks
    place(range(len(labels)), [clipped(label) for label in labels], parse_math=False, **style)
    panel.tick_params(axis=axis, labelsize=size)  # type: ignore[arg-type]


def clipped(text: str, most: int = 28) -> str:
    """Cut a long label."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def png(figure: "Figure") -> bytes:
    """Draw a figure; the same one gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
