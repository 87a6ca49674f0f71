"""One HTML page of figures and tables, whole in itself: no script, no other file, no network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.reports.canvas import needed
from one4all_lc.writing import replace_bytes

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "page.html.jinja"
PAGE = "report.html"


@dataclass(frozen=True)
class Fact:
    """A figure that stands large at the head of a page.

    Attributes:
        value: As it is to be read: "93.2 %".
        name: What it is.
        note: What it should be, or how it was measured.
    """

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        name: Its file's name without `.png`.
        title: Over it.
        png: Its bytes.
        words: What it shows, and how to read it.
    """

    name: str
    title: str
    png: bytes
    words: str = ""

    @property
    def kind(self) -> str:
        """What the template makes of it."""
        return "picture"

    @property
    def url(self) -> str:
        """The picture as an URL that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Over it.
        header: The columns' names.
        rows: The cells: text stands at its beginning, whichever side that is in its language;
            numbers stand right, with `digits` decimals if they are not whole; None is a dash.
        words: What it shows.
        digits: Decimals.
        folded: Whether the reader opens it, for what is long.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]
    words: str = ""
    digits: int = 3
    folded: bool = False

    @property
    def kind(self) -> str:
        """What the template makes of it."""
        return "table"

    def shown(self, value: str | float | int | None) -> str:
        """Write a cell's value."""
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Of the page.
        summary: A sentence or two: what was measured on what.
        facts: What matters most.
        parts: Figures and tables, in order.
    """

    title: str
    summary: str
    facts: Sequence[Fact] = ()
    parts: Sequence[Picture | Table] = ()


def render(page: Page) -> str:
    """Return the page as HTML; whatever stands in its texts stays text.

    Raises:
        InvalidInput: jinja2 is not installed.
    """
    return _template().render(page=page)


def write_report(folder: str | Path, page: Page) -> Path:
    """Write the page as `report.html` and its figures as PNG files.

    Each file takes its place whole, the page last.

    Args:
        folder: Where; it is made if need be.
        page: The report.

    Returns:
        The page's path.

    Raises:
        InvalidInput: The folder cannot be written, or jinja2 is not installed.
    """
    html = render(page)
    for part in page.parts:
        if isinstance(part, Picture):
            replace_bytes(Path(folder) / f"{part.name}.png", part.png)
    return replace_bytes(Path(folder) / PAGE, html.encode())


@cache
def _template() -> "Template":
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise needed("jinja2") from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["number"] = _is_number
    source = files("one4all_lc.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
