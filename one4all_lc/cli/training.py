"""`one4all train` and `one4all eval`: experts made and measured."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.cli.common import (
    Adapters,
    AsJson,
    Base,
    Quantization,
    app,
    library_of,
    notes,
    print_json,
)


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="The expert's folder, adapters/NAME.")],
    data: Annotated[list[Path], typer.Option(help="JSONL rows; may be given again.")],
    description: Annotated[str | None, typer.Option(help="What the expert is for.")] = None,
    title: Annotated[str | None, typer.Option(help="A few words for people.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Before every conversation.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639-1; again for more.")] = None,
    license: Annotated[str | None, typer.Option(help="The data's license.")] = None,  # noqa: A002
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="Most of an answer.")] = None,
    base: Base = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="The adapter's rank.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=1e-8, help="Its peak.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and order.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="From the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an expert on rows of data and measure it against the base."""
    from one4all_lc.base.loading import DEFAULT_BASE
    from one4all_lc.training.qlora import train_expert
    from one4all_lc.training.recipe import About, Recipe

    about = About(
        title=title,
        description=description,
        languages=tuple(language) if language else None,
        system_prompt=system_prompt,
        generation={"max_tokens": answer_tokens} if answer_tokens else None,
        license=license,
    )
    recipe = Recipe(rank=rank, learning_rate=learning_rate, steps=steps, seed=seed)
    expert = train_expert(
        folder, data, about=about, recipe=recipe, base=base or DEFAULT_BASE, resume=resume
    )
    if as_json:
        print_json(expert.card.as_dict())
        return
    typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")
    _print_metrics({expert.name: expert.card.metrics})


@app.command(name="eval")
def evaluate(
    data: Annotated[list[Path], typer.Option(help="NAME.jsonl: rows of the expert NAME's domain.")],
    adapters: Adapters = None,
    base: Base = None,
    quantization: Quantization = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Held-out rows per expert.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure experts against the bare base on held-out rows."""
    from one4all_lc.base.loading import DEFAULT_BASE
    from one4all_lc.training.data import read_rows
    from one4all_lc.training.evaluation import ANSWERED_ROWS, SCORED_ROWS, measure

    library = library_of(adapters)
    named = {path: library[path.stem] for path in data}
    metrics = {}
    for path, expert in named.items():
        with notes.status(f"measuring {expert.name}"):
            metrics[expert.name] = measure(
                expert.folder,
                read_rows([path]),
                base or DEFAULT_BASE,
                quantization=quantization,  # type: ignore[arg-type]
                scored=limit or SCORED_ROWS,
                answered=limit or ANSWERED_ROWS,
            )
    if as_json:
        print_json(metrics)
    else:
        _print_metrics(metrics)


def _print_metrics(metrics: dict[str, Any]) -> None:
    table = Table("expert", "metric", "base", "expert", "rows")
    for name, values in metrics.items():
        for metric, figures in values.items():
            if isinstance(figures, dict):
                row = (f"{figures['base']:.3f}", f"{figures['expert']:.3f}", str(figures["rows"]))
                table.add_row(name, metric, *row)
    Console().print(table)
