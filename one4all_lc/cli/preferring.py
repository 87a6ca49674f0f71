"""`one4all prefer`: an expert goes on from what people prefer."""

from pathlib import Path
from typing import Annotated

import typer

from one4all_lc.cli.common import AsJson, Base, app, print_json


@app.command()
def prefer(
    folder: Annotated[Path, typer.Argument(help="The expert's folder, adapters/NAME.")],
    pairs: Annotated[
        list[Path], typer.Option(help='{"question", "chosen", "rejected"}: JSONL or CSV; again.')
    ],
    data: Annotated[list[Path] | None, typer.Option(help="Rows to measure it on; again.")] = None,
    base: Base = None,
    beta: Annotated[float, typer.Option(min=0.001, help="How close it stays.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(min=1e-8, help="Its peak.")] = 5e-5,
    passes: Annotated[float, typer.Option(min=0.01, help="Over the pairs.")] = 1.0,
    batch_pairs: Annotated[int, typer.Option(min=1, help="Of a step.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longer pairs are left out.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Teach an expert which of two answers people prefer (DPO, by TRL)."""
    from one4all_lc.training.preferences import PreferenceRecipe
    from one4all_lc.training.preferences import prefer as learn

    recipe = PreferenceRecipe(beta, learning_rate, passes, batch_pairs, max_tokens, seed)
    expert = learn(folder, pairs, data=data or (), recipe=recipe, base=base)
    if as_json:
        print_json(expert.card.as_dict())
        return
    facts = expert.card.training["preferences"]
    held_out = facts["held_out"]
    typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")
    if held_out["pairs"]:
        typer.echo(
            f"the preferred answer is the likelier one in {held_out['after']:.0%} of "
            f"{held_out['pairs']} held-out pairs, before in {held_out['before']:.0%}"
        )
