"""`one4all experts` and `one4all check`: expert folders."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.cli.common import Adapters, AsJson, Base, app, library_of, print_json
from one4all_lc.cli.versions import list_versions


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
    table = Table("expert", "version", "languages", "exemplars", "what it is for")
    for expert in library:
        card = expert.card
        facts = (card.name, str(card.version), " ".join(card.languages), str(len(expert.exemplars)))
        table.add_row(*facts, card.description)
    Console().print(table)


@app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Expert folders.")],
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Say whether expert folders are fit to be used with the base, and if not, why."""
    from one4all_lc.base.loading import DEFAULT_BASE, describe
    from one4all_lc.errors import UnfitExpert
    from one4all_lc.folder import read_expert

    facts = describe(base or DEFAULT_BASE)
    reports: list[dict[str, Any]] = []
    for folder in folders:
        try:
            expert = read_expert(folder, facts)
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
