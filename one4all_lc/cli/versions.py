"""`one4all publish`, `rollback` and `experts --versions`: which version is served."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.cli.common import Adapters, AsJson, Base, Quantization, app, folder_of, print_json
from one4all_lc.cli.evaluating import Scorer
from one4all_lc.head import CHAT
from one4all_lc.publishing import KEPT

if TYPE_CHECKING:
    from one4all_lc.library import Library
    from one4all_lc.training.data import Row
    from one4all_lc.training.proving import Publication
    from one4all_lc.versions import Version

Keep = Annotated[int, typer.Option(min=0, help="Old versions that are kept.")]
Metric = Annotated[
    str | None,
    typer.Option(help="What decides: a figure that cards of the kind have, or a scorer."),
]


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A finished expert folder; it stays there.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Rows; by default the two cards' own figures are compared."),
    ] = None,
    adapters: Adapters = None,
    base: Base = None,
    quantization: Quantization = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Held-out rows that are asked.")] = None,
    scorer: Scorer = None,
    tolerance: Annotated[float, typer.Option(min=0, help="By how much it may be worse.")] = 0.0,
    keep: Keep = KEPT,
    force: Annotated[bool, typer.Option("--force", help="Even if it is worse.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put an expert in place if it is not worse than the version that is there."""
    from one4all_lc.folder import read_expert
    from one4all_lc.training.proving import publish_if_not_worse

    card = read_expert(folder).card
    target = folder_of(adapters) / card.name
    rows = _rows(card.kind, data or [])
    settings = {"gate": not force, "tolerance": tolerance, "scorer": scorer, "keep": keep}
    decides = card.kind != CHAT
    with _measuring(rows, limit, decides=decides, quantization=quantization, **settings) as how:
        expert, verdict = publish_if_not_worse(folder, target, rows, publication=how, base=base)
    if as_json:
        found = verdict.as_dict() if verdict else None
        facts = {"name": expert.name, "version": expert.card.version, "folder": str(target)}
        print_json({**facts, "verdict": found})
        return
    typer.echo(f"{expert.name} version {expert.card.version} is in {target}")
    if verdict:
        typer.echo(f"{verdict}")


def _rows(kind: str, data: Sequence[Path]) -> Sequence["Row"]:
    from one4all_lc.training.data import read_rows
    from one4all_lc.training.kinds.rows import read_kind_rows

    return read_rows(data) if kind == CHAT else read_kind_rows(kind, data)


@contextlib.contextmanager
def _measuring(
    rows: Sequence["Row"], limit: int | None, *, decides: bool, **settings: Any
) -> Iterator["Publication"]:
    """Return how a version is measured, under a progress bar."""
    from one4all_lc.cli.evaluating import counting
    from one4all_lc.training.evaluation import ANSWERED_ROWS, SCORED_ROWS
    from one4all_lc.training.measuring import held_out_split
    from one4all_lc.training.proving import Publication

    split = held_out_split(rows)
    held_out = sum(row.split == split for row in rows) if settings["gate"] else 0
    scored = min(limit or SCORED_ROWS, held_out)
    answered = min(limit or ANSWERED_ROWS, scored)
    total = min(limit or held_out, held_out) if decides else 2 * (scored + answered)
    with counting("measuring", total) as advance:
        yield Publication(
            scored=scored, answered=answered, decided=limit, advance=advance, **settings
        )


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The expert.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Which; by default the one before.")
    ] = None,
    adapters: Adapters = None,
    keep: Keep = KEPT,
    as_json: AsJson = False,
) -> None:
    """Serve a kept version of an expert again."""
    from one4all_lc.card import check_name
    from one4all_lc.versions import rollback as back

    check_name(name)
    expert = back(folder_of(adapters) / name, version, keep=keep)
    if as_json:
        print_json({"name": expert.name, "version": expert.card.version})
        return
    typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")


def list_versions(library: "Library", *, as_json: bool) -> None:
    """Print every expert's versions, the newest first."""
    from one4all_lc.versions import versions_of

    found = [item for expert in library for item in versions_of(expert.folder)]
    if as_json:
        print_json([_facts(item) for item in found])
        return
    table = Table("expert", "version", "in place", "metric", "measured", "base", "weights")
    for item in found:
        facts = _facts(item)
        figures = [f"{facts[who]:.3f}" if facts[who] is not None else "–" for who in _MEASURED]
        name, number = str(facts["name"]), str(facts["version"])
        here = "yes" if item.in_place else ""
        weights = item.card.weights_sha256[:12]
        table.add_row(name, number, here, str(facts["metric"]), *figures, weights)
    Console().print(table)


_MEASURED = ("expert", "base")


def _facts(item: "Version") -> dict[str, Any]:
    card = item.card
    figures = card.metrics.get(card.metric)
    measured = figures if isinstance(figures, dict) else {}
    return {
        "name": card.name,
        "version": item.number,
        "in_place": item.in_place,
        "folder": str(item.folder),
        "metric": card.metric,
        **{who: measured.get(who) for who in _MEASURED},
        "weights_sha256": card.weights_sha256,
    }
