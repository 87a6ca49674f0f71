"""`one4all eval`: every expert on every domain, the router against the oracle."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from one4all_lc.cli.common import (
    Adapters,
    AsJson,
    Base,
    Quantization,
    app,
    library_of,
    loading,
    note,
    notes,
    print_json,
)
from one4all_lc.errors import InvalidInput
from one4all_lc.head import CHAT

if TYPE_CHECKING:
    from one4all_lc.base.loading import Quantization as Quantized
    from one4all_lc.library import Library
    from one4all_lc.training.data import Row
    from one4all_lc.training.matrix import Matrix

Scorer = Annotated[
    str | None,
    typer.Option(help="module:function(answer, wanted) -> number: a metric of your own."),
]


@app.command(name="eval")
def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(help="NAME.jsonl with rows of expert NAME's domain, or a folder of such."),
    ],
    adapters: Adapters = None,
    base: Base = None,
    quantization: Quantization = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Held-out rows of each domain.")] = None,
    scorer: Scorer = None,
    out: Annotated[Path | None, typer.Option(help="Heat maps and a page are written here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every expert on every domain, and the routed answers against the oracle's.

    Experts that decide are asked the rows of their own domain alone.
    """
    from one4all_lc.training.matrix_report import as_dict, page_of

    every = library_of(adapters)
    files = files_of(data, every)
    deciding = [file for file in files if every[file.stem].card.kind != CHAT]
    quantized = cast("Quantized", quantization)
    found = _deciding(deciding, every, base, quantized, limit)
    if deciding and len(deciding) == len(files):
        _print_deciding(found, as_json=as_json)
        return
    library = _chat_experts(every)
    rows = rows_by_expert([file for file in files if file not in deciding], library)
    matrix = _matrix(library, rows, base, quantized, limit, scorer)
    if out is not None:
        from one4all_lc.reports.page import write_report

        note(f"{write_report(out, page_of(matrix))} has the heat maps and figures")
    document = as_dict(matrix)
    document["metrics"] |= found
    if as_json:
        print_json(document)
        return
    print_metrics(document["metrics"])
    _print_ways(document)


def _chat_experts(library: "Library") -> "Library":
    """Leave out experts that write nothing: they label, and are measured as they are trained."""
    from one4all_lc.library import Library

    return Library.of([expert for expert in library if expert.card.kind == CHAT])


def _deciding(
    files: Sequence[Path],
    library: "Library",
    base: str | None,
    quantization: "Quantized",
    limit: int | None,
) -> dict[str, Any]:
    """Return the figures of experts that decide, each on its own rows, as it is served."""
    from one4all_lc.base.loading import encodes
    from one4all_lc.training.kinds.examination import examine_kind
    from one4all_lc.training.kinds.rows import read_kind_rows

    encoder = base if files and base and encodes(base) else None
    metrics = {}
    for file in files:
        expert = library[file.stem]
        rows = read_kind_rows(expert.card.kind, [file])
        note(f"asking {expert.name}")
        found = examine_kind(
            expert.folder, rows, encoder or expert.card.base, quantization=quantization, limit=limit
        )
        metrics[expert.name] = found.metrics()
    return metrics


def _print_deciding(metrics: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"metrics": metrics})
    else:
        print_metrics(metrics)


def files_of(data: Sequence[Path], library: "Library") -> list[Path]:
    """Return the files of rows, each named after an expert.

    Raises:
        InvalidInput: A folder has no rows for any expert.
        UnknownExpert: A file is named after no expert.
    """
    files: list[Path] = []
    for path in data:
        if not path.is_dir():
            files.append(path)
            continue
        found = [path / f"{name}.jsonl" for name in library.names]
        there = [file for file in found if file.is_file()]
        if not there:
            shown = found[0].name if found else "NAME.jsonl"
            msg = (
                f"{path} has rows for no expert: name a file {shown}, for example, with rows as "
                "`one4all train` reads them."
            )
            raise InvalidInput(msg)
        files += there
    for file in files:
        library[file.stem]
    return files


def rows_by_expert(files: Sequence[Path], library: "Library") -> dict[str, list["Row"]]:
    """Read rows by the expert whose domain they are.

    Raises:
        InvalidInput: A file is missing or broken.
    """
    from one4all_lc.training.data import read_rows

    by_expert: dict[str, list[Row]] = {}
    for file in files:
        by_expert.setdefault(file.stem, []).extend(read_rows([file]))
    return by_expert


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how many of `total` rows are done; a line now and then where no one watches.

    Yields:
        What to call for each row.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    watched = notes.is_terminal
    hidden = not (watched and total)
    with Progress(*columns, TimeRemainingColumn(), console=notes, disable=hidden) as bar:
        task, done = bar.add_task(what, total=total), 0

        def advance() -> None:
            nonlocal done
            done += 1
            bar.advance(task)
            if not watched and (done == total or done % max(1, total // 10) == 0):
                note(f"{what}: {done} of {total} rows")

        yield advance


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print what each expert measures against the base and against looking up."""
    table = Table("expert", "metric", "base", "expert", "nearest", "better by, 95 %", "rows")
    for name, values in metrics.items():
        for metric, figures in values.items():
            if isinstance(figures, dict):
                table.add_row(name, metric, *_cells(figures))
    Console().print(table)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    nearest = figures.get("nearest")
    gain = "ratio" if "ratio" in figures else "gain"
    better = "–"
    if gain in figures:
        low, high = figures["intervals"][gain]
        times = "× " if gain == "ratio" else ""
        better = f"{times}{figures[gain]:.3f} ({low:.3f} to {high:.3f})"
    shown = [f"{figures[who]:.3f}" for who in ("base", "expert")]
    return [*shown, "–" if nearest is None else f"{nearest:.3f}", better, str(figures["rows"])]


def _matrix(
    library: "Library",
    rows: Mapping[str, Sequence["Row"]],
    base: str | None,
    quantization: "Quantized",
    limit: int | None,
    scorer: str | None,
) -> "Matrix":
    from one4all_lc.base.loading import DEFAULT_BASE, SharedBase
    from one4all_lc.library import Library
    from one4all_lc.routing.embeddings import MODEL
    from one4all_lc.routing.router import SemanticRouter
    from one4all_lc.training.evaluation import ANSWERED_ROWS, SCORED_ROWS
    from one4all_lc.training.matrix import cells, domains_of, fill

    with loading(base or DEFAULT_BASE, MODEL):
        shared = SharedBase.load(base or DEFAULT_BASE, quantization=quantization)
        asked = Library(base=shared.facts)
        for expert in library:
            asked.add(expert.folder)
        router = SemanticRouter(library=asked)
        router.refresh()
    scored, answered = limit or SCORED_ROWS, limit or ANSWERED_ROWS
    domains = domains_of(asked, rows, shared, scored=scored, answered=answered)

    def route(questions: list[str]) -> list[str | None]:
        return [item.best for item in router.batch(list(questions))]

    with counting("measuring", cells(asked, domains)) as advance:
        return fill(asked, domains, shared, route, scorer=scorer, advance=advance)


def _print_ways(document: Mapping[str, Any]) -> None:
    domains = list(document["matrix"])
    table = Table("answered by", "mean", *domains)
    for way, figures in document["answered_by"].items():
        values = [figures["score"], *(figures["domains"][name] for name in domains)]
        table.add_row(way, *(f"{value:.3f}" for value in values))
    Console().print(table)
