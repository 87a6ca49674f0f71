"""`one4all train`: experts made."""

from pathlib import Path
from typing import Annotated

import typer

from one4all_lc.cli.common import AsJson, Base, app, print_json
from one4all_lc.cli.evaluating import Scorer, print_metrics
from one4all_lc.cli.versions import Keep, Metric
from one4all_lc.publishing import KEPT


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
    metric: Metric = None,
    scorer: Scorer = None,
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Replace what is in place only by what is not worse."),
    ] = False,
    keep: Keep = KEPT,
    resume: Annotated[bool, typer.Option("--resume", help="From the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an expert on rows of data and measure it against the base."""
    from one4all_lc.base.loading import DEFAULT_BASE
    from one4all_lc.training.proving import Publication
    from one4all_lc.training.qlora import train_expert
    from one4all_lc.training.recipe import About, Recipe

    about = About(
        title=title,
        description=description,
        languages=tuple(language) if language else None,
        system_prompt=system_prompt,
        generation={"max_tokens": answer_tokens} if answer_tokens else None,
        license=license,
        metric=metric or scorer,
    )
    recipe = Recipe(rank=rank, learning_rate=learning_rate, steps=steps, seed=seed)
    expert = train_expert(
        folder,
        data,
        about=about,
        recipe=recipe,
        base=base or DEFAULT_BASE,
        resume=resume,
        publication=Publication(gate=publish, scorer=scorer, keep=keep),
    )
    if as_json:
        print_json(expert.card.as_dict())
        return
    typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")
    print_metrics({expert.name: expert.card.metrics})
