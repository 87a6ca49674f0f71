"""`one4all experts` and `one4all check`: expert folders."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.cli.common import Adapters, AsJson, Base, app, library_of, print_json
from one4all_lc.cli.versions import list_versions

if TYPE_CHECKING:
    from one4all_lc.card import BaseFacts


@app.command()
def experts(
    adapters: Adapters = None,
    versions: Annotated[
        bool, typer.Option("--versions", help="Each with the versions that are kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the experts in use."""
    library = library_of(adapters)
    if versions:
        list_versions(library, as_json=as_json)
        return
    if as_json:
        print_json([{**expert.card.as_dict(), "identity": expert.identity} for expert in library])
        return
    table = Table("expert", "kind", "version", "languages", "exemplars", "what it is for")
    for expert in library:
        card = expert.card
        count = str(len(expert.exemplars))
        facts = (card.name, card.kind, str(card.version), " ".join(card.languages), count)
        table.add_row(*facts, card.description)
    Console().print(table)


@app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Expert folders.")],
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Say whether expert folders are fit to be used with the base, and if not, why."""
    from one4all_lc.errors import UnfitExpert
    from one4all_lc.folder import read_expert

    reports: list[dict[str, Any]] = []
    for folder in folders:
        try:
            expert = read_expert(folder, _facts_for(folder, base))
            reports.append({"folder": str(folder), "fit": True, "identity": expert.identity})
        except UnfitExpert as error:
            reports.append({"folder": str(folder), "fit": False, "reason": str(error)})
    if as_json:
        print_json(reports)
    for report in reports:
        if not report["fit"]:
            typer.echo(f"one4all: {report['reason']}", err=True)
        elif not as_json:
            typer.echo(f"{report['folder']} is fit: identity {report['identity'][:16]}")
    if not all(report["fit"] for report in reports):
        raise typer.Exit(1)


def _facts_for(folder: Path, base: str | None) -> "BaseFacts":
    """Return the facts of the base that an expert is to be checked against: its own by default."""
    from one4all_lc.base.loading import DEFAULT_BASE, describe
    from one4all_lc.card import ExpertCard
    from one4all_lc.errors import UnfitExpert
    from one4all_lc.head import CHAT

    named = base or DEFAULT_BASE
    if base is None:
        with contextlib.suppress(UnfitExpert):  # said by who checks the whole folder
            card = ExpertCard.read(folder)
            named = named if card.kind == CHAT else card.base
    if named not in _described:
        _described[named] = describe(named)
    return _described[named]


_described: "dict[str, BaseFacts]" = {}
