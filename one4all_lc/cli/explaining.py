"""A route as tables: every expert's scores beside its threshold, and the nearest exemplars."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from one4all_lc.routing.route import Route

SHOWN = 10
"""Experts that are printed; `--json` has all."""


def print_route(route: "Route") -> None:
    """Print a route's tables on standard output."""
    console = Console()
    if not route.experts:
        return
    if route.history != "message":
        console.print(f"decided by {route.history}: ", Text(route.routed), highlight=False)
    console.print(_experts(route))
    if len(route.experts) > SHOWN:
        console.print(f"and {len(route.experts) - SHOWN} more experts")
    near = Table("cosine", "expert", "nearest exemplar")
    for item in route.nearest:
        near.add_row(f"{item.similarity:.3f}", item.expert, Text(item.text))
    console.print(near)
    for part in route.parts:
        console.print(f"{part.expert or 'base'} ({part.probability:.0%}): ", Text(part.text))


def _experts(route: "Route") -> Table:
    table = Table("", "expert", "probability", "score", "in scope", "threshold", "is in scope")
    for item in route.experts[:SHOWN]:
        fits = item.in_scope >= item.threshold
        table.add_row(
            "→" if item.name in route.chosen else "",
            item.name,
            f"{item.probability:.1%}",
            f"{item.score:.3f}",
            f"{item.in_scope:.3f}",
            f"{item.threshold:.3f}",
            f"{'yes' if fits else 'no'} ({item.in_scope_probability:.0%})",
        )
    return table
