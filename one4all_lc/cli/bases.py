"""`one4all bases`: the bases that are worth starting from."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.cli.common import AsJson, app, note, notes, print_json

WIDTH = 150
"""Columns in which the table has all ids whole."""


@app.command()
def bases(
    saadibert: Annotated[
        str | None, typer.Option(help="Its folder, since no public id is known.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List recommended bases with the memory that they take."""
    from one4all_lc.base.memory import RANK, TRAINED_ROWS, TRAINED_TOKENS
    from one4all_lc.base.quiet import quiet
    from one4all_lc.base.recommended import rows

    with notes.status("computing"), quiet():
        found = rows(saadibert)
    if as_json:
        print_json([row.as_dict() for row in found])
        return
    table = Table(
        "base", "id", "languages", "kind", "parameters", "none", "int8", "nf4", "training"
    )
    for row in found:
        memory = row.memory
        figures = ["–"] * 5
        if memory is not None:
            sizes = (memory.none, memory.int8, memory.nf4, memory.training)
            figures = [f"{memory.parameters / 1e6:,.0f} M", *(_megabytes(size) for size in sizes)]
        name = f"{row.name} *" if row.at_hand else row.name
        table.add_row(name, row.id or "–", ", ".join(row.languages), row.kind, *figures)
    # An id that is cut off is none: on a narrow terminal lines wrap instead.
    Console(width=max(Console().width, WIDTH)).print(table)
    note(
        "* is at hand offline. MB of the weights in bfloat16, int8 and NF4 as bitsandbytes has "
        f"them; training: an adapter of rank {RANK} on NF4, {TRAINED_ROWS} rows of "
        f"{TRAINED_TOKENS} tokens."
    )
    for row in found:
        if row.remark:
            note(f"{row.name}: {row.remark}.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"
