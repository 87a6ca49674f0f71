"""`one4all exemplars` and `one4all eval-router`: what the router compares with, and how it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from one4all_lc.cli.common import (
    Adapters,
    AsJson,
    Embedder,
    app,
    embedder_of,
    library_of,
    loading,
    note,
    notes,
    print_json,
)
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from one4all_lc.library import Library
    from one4all_lc.routing.measuring import Measured
    from one4all_lc.routing.review import Review
    from one4all_lc.routing.rows import Labelled

SHOWN = 20
"""Findings of a kind that are printed; `--json` has all."""


@app.command()
def exemplars(
    folder: Annotated[Path | None, typer.Argument(help="The expert's folder.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="JSONL questions; again for more.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Exemplars that the expert shall have.")] = 50,
    near: Annotated[float, typer.Option(min=0, max=1, help="Cosine of near-duplicates.")] = 0.92,
    seed: Annotated[int, typer.Option(min=0, help="Of the clusters.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Keep none of the old ones.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Look through all experts'.")] = False,
    adapters: Adapters = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Mine exemplars into FOLDER from --data, or look through all experts' with --check."""
    from one4all_lc.routing.review import Mining, mine_exemplars

    if check:
        _check(adapters, data or [], near, embedder_of(embedder), as_json=as_json)
        return
    if folder is None or not data:
        msg = "Give an expert's folder and --data FILE to mine from, or --check."
        raise typer.BadParameter(msg)
    rows = [row for row in _questions(data, folder.name) if row.label == folder.name]
    with loading(), notes.status(f"reading {len(rows)} questions"):
        settings = Mining(count, replace=replace, duplicate=near, seed=seed)
        mined, after = mine_exemplars(
            folder, rows, embedder_of(embedder), settings, write=not dry_run
        )
    if as_json:
        texts = [{"text": item.text, "language": item.language} for item in mined]
        print_json({"folder": str(folder), "exemplars": len(after), "mined": texts})
        return
    typer.echo("\n".join(item.text for item in mined))
    done = "would have" if dry_run else "has"
    note(
        f"{folder} {done} {len(after)} exemplars, {len(mined)} of them mined from {len(rows)} rows"
    )


@app.command(name="eval-router")
def eval_router(
    data: Annotated[list[Path], typer.Option(help='Rows {"text", "label", "split"}.')],
    exemplars_per_domain: Annotated[
        int, typer.Option(min=1, help="Drawn from split train for each label, oos among them.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 13,
    label: Annotated[str, typer.Option(help="The rows' field with the label.")] = "label",
    adapters: Annotated[
        Path | None, typer.Option(help="Measure these experts' exemplars: labels are their names.")
    ] = None,
    embedder: Embedder = None,
    out: Annotated[Path | None, typer.Option(help="Folder for page, figures, rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the router on labelled questions, label oos being nobody's."""
    from one4all_lc.routing import report
    from one4all_lc.routing.exemplars import named
    from one4all_lc.routing.rows import held_out, read_labelled

    rows = read_labelled(data, label)
    asked = held_out(rows)
    library, labels = _measured_library(rows, adapters, exemplars_per_domain, seed)
    embeddings = embedder_of(embedder)
    with loading():
        measured = _measure(library, labels, asked, embeddings)
    found = report.numbers(measured, seed)
    files = ", ".join(path.name for path in data)
    title = f"Router on {files}"
    counts = [len(expert.exemplars) for expert in library]
    summary = (
        f"{len(asked):,} questions of split {asked[0].split!r}, {len(labels)} domains, "
        f"{sum(counts):,} exemplars, seed {seed}, embedder {' '.join(named(embeddings))}."
    )
    page = report.write(out, measured, title, summary, seed) if out else None
    if as_json:
        print_json({**found, "seed": seed, "report": str(page) if page else None})
        return
    _print_measured(found)
    note(summary + (f" The report is {page}." if page else ""))


def _check(
    adapters: Path | None,
    data: Sequence[Path],
    near: float,
    embeddings: "Embeddings",
    *,
    as_json: bool,
) -> None:
    from one4all_lc.routing.exemplars import ExemplarStore
    from one4all_lc.routing.review import review

    library = library_of(adapters)
    rows = [row for path in data for row in _questions([path], path.stem)]
    with loading(), notes.status("comparing exemplars"):
        known = ExemplarStore(embeddings).sync(library)
        found = review(list(library), known, rows, embeddings, duplicate=near)
    if as_json:
        print_json(found.as_dict())
    else:
        _print_review(found)


def _questions(data: Sequence[Path], name: str) -> "list[Labelled]":
    """Read questions; those that have no label are the named expert's."""
    import dataclasses

    from one4all_lc.routing.rows import read_labelled

    rows = read_labelled(data, None)
    return [row if row.label else dataclasses.replace(row, label=name) for row in rows]


def _measured_library(
    rows: "Sequence[Labelled]", adapters: Path | None, count: int, seed: int
) -> "tuple[Library, tuple[str, ...]]":
    from one4all_lc.folder import OOS
    from one4all_lc.routing.measuring import library_from
    from one4all_lc.routing.rows import draw

    if adapters is None:
        return library_from(draw(rows, count, seed))
    library = library_of(adapters)
    strangers = sorted({row.label for row in rows} - {*library.names, OOS})
    if strangers:
        msg = (
            f"Rows are labelled {strangers[0]!r}, which is no expert in {adapters}: the experts "
            f"are {', '.join(library.names)}; nobody's rows are labelled {OOS!r}."
        )
        raise InvalidInput(msg)
    return library, library.names


def _measure(
    library: "Library",
    labels: Sequence[str],
    asked: "Sequence[Labelled]",
    embeddings: "Embeddings",
) -> "Measured":
    from one4all_lc.routing.measuring import measure

    with Progress(console=notes, transient=True) as progress:
        task = progress.add_task("routing questions", total=len(asked))
        return measure(
            library,
            labels,
            asked,
            embeddings=embeddings,
            progress=lambda done: progress.update(task, completed=done),
        )


def _print_measured(found: dict[str, Any]) -> None:
    from one4all_lc.routing.report import ARMS

    fields = ("accuracy", "macro_f1", "accuracy_in_scope", "retention", "oos_recall")
    table = Table("arm", *(field.replace("_", " ") for field in fields))
    for name, arm in found["arms"].items():
        table.add_row(ARMS[name], *(_number(arm[field]) for field in fields))
    console = Console()
    console.print(table)
    table = Table(
        "label", "exemplars", "rows", "precision", "recall", "f1", "to others", "to nobody"
    )
    for row in found["experts"]:
        scores = (_number(row[field]) for field in ("precision", "recall", "f1"))
        counts = (str(row[field]) for field in ("taken_by_others", "abstained"))
        sizes = (str(row["exemplars"]), str(row["rows"]))
        table.add_row(Text(row["label"]), *sizes, *scores, *counts)
    console.print(table)
    names = ("auroc", "ece", "ece_in_scope", "aurc")
    console.print(", ".join(f"{name} {_number(found[name])}" for name in names), highlight=False)


def _print_review(found: "Review") -> None:
    console = Console()
    kinds = (("conflicts between experts", found.conflicts), ("near-duplicates", found.duplicates))
    for title, pairs in kinds:
        table = Table("cosine", "expert", "exemplar", title=f"{len(pairs)} {title}")
        for pair in pairs[:SHOWN]:
            for side in (0, 1):
                cosine = f"{pair.cosine:.2f}" if side == 0 else ""
                table.add_row(cosine, pair.experts[side], Text(pair.texts[side]))
            table.add_section()
        if pairs:
            console.print(table)
    if found.gaps:
        title = f"{len(found.gaps)} of {found.questions} questions far from every exemplar"
        table = Table("cosine", "expert", "question", "nearest exemplar", title=title)
        for gap in found.gaps[:SHOWN]:
            table.add_row(f"{gap.cosine:.2f}", gap.expert, Text(gap.text), Text(gap.nearest))
        console.print(table)
    for name, count in found.thin:
        console.print(f"{name} has {count} exemplars: write some more.", highlight=False)
    for name, language in found.languages:
        console.print(f"{name} has no exemplar in {language!r}, its card says.", highlight=False)
    note(
        f"{found.exemplars} exemplars: {len(found.conflicts)} conflicts, {len(found.duplicates)} "
        f"near-duplicates, {len(found.gaps)} gaps in {found.questions} questions"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
