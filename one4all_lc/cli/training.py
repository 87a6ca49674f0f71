"""`one4all train`: experts made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from one4all_lc.cli.common import AsJson, Base, app, print_json
from one4all_lc.cli.evaluating import Scorer, print_metrics
from one4all_lc.cli.reporting import note_report
from one4all_lc.cli.versions import Keep, Metric
from one4all_lc.publishing import KEPT

if TYPE_CHECKING:
    from one4all_lc.folder import Expert
    from one4all_lc.training.data import Fields
    from one4all_lc.training.proving import Publication
    from one4all_lc.training.recipe import About


@app.command()
def train(
    folder: Annotated[
        Path | None, typer.Argument(help="The expert's folder, adapters/NAME.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL, CSV, parquet, or a folder of `datasets`; again for more."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the expert is for.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="chat, or on an encoder: classify, tag, extract, pair."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="A few words for people.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Before every conversation.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639-1; again for more.")] = None,
    license: Annotated[str | None, typer.Option(help="The data's license.")] = None,  # noqa: A002
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="Most of an answer.")] = None,
    exemplars: Annotated[Path | None, typer.Option(help="Questions that it is asked.")] = None,
    question_field: Annotated[str, typer.Option(help="Field or column asked.")] = "question",
    answer_field: Annotated[str, typer.Option(help="Field or column answered.")] = "answer",
    context_field: Annotated[str, typer.Option(help="A text to answer from.")] = "context",
    text_field: Annotated[str, typer.Option(help="A text labelled or tagged.")] = "text",
    label_field: Annotated[str, typer.Option(help="Its label, or a list of them.")] = "label",
    entities_field: Annotated[str, typer.Option(help="Its entities.")] = "entities",
    premise_field: Annotated[str, typer.Option(help="Given, of a pair.")] = "premise",
    hypothesis_field: Annotated[str, typer.Option(help="Judged by it.")] = "hypothesis",
    start_field: Annotated[str, typer.Option(help="Where an answer begins.")] = "answer_start",
    base: Base = None,
    like: Annotated[
        Path | None, typer.Option(help="Repeat this expert's recipe on another --base.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps at most.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="The adapter's rank.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-8, help="Its peak.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a step.")] = None,
    micro_tokens: Annotated[int | None, typer.Option(min=1, help="Of a forward.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=8, help="Longer rows are left out.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Layers adapted; again.")] = None,
    packing: Annotated[bool | None, typer.Option(help="Rows one after another.")] = None,
    patience: Annotated[int | None, typer.Option(min=0, help="0: no early stopping.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Of the base: nf4 or none.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and order.")] = None,
    metric: Metric = None,
    scorer: Scorer = None,
    publish: Annotated[bool, typer.Option("--publish", help="Unless it is worse.")] = False,
    keep: Keep = KEPT,
    resume: Annotated[bool, typer.Option("--resume", help="From the last checkpoint.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only look at the data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an expert on rows of data and measure it against the base."""
    from one4all_lc.training.data import Fields
    from one4all_lc.training.proving import Publication
    from one4all_lc.training.recipe import About

    about = About(
        title=title,
        description=description,
        languages=tuple(language) if language else None,
        system_prompt=system_prompt,
        generation={"max_tokens": answer_tokens} if answer_tokens else None,
        license=license,
        metric=metric or scorer,
        kind=kind,
    )
    if kind not in (None, "chat") and (system_prompt or answer_tokens or scorer):
        msg = f"an expert of kind {kind} has no --system-prompt, --answer-tokens or --scorer."
        raise typer.BadParameter(msg)
    how = Publication(gate=publish, scorer=scorer, keep=keep)
    options = {
        "steps": steps,
        "rank": rank,
        "learning_rate": learning_rate,
        "batch_tokens": batch_tokens,
        "micro_tokens": micro_tokens,
        "max_tokens": max_tokens,
        "targets": tuple(target) if target else None,
        "packing": packing,
        "patience": patience,
        "quantization": quantization,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    fields = Fields(
        question=question_field,
        answer=answer_field,
        context=context_field,
        text=text_field,
        label=label_field,
        entities=entities_field,
        premise=premise_field,
        hypothesis=hypothesis_field,
        start=start_field,
    )
    data = data or []
    if like:
        if given or about != About() or exemplars or check:
            msg = (
                "--like repeats the card's recipe: beside it give FOLDER, --data and --base alone."
            )
            raise typer.BadParameter(msg)
        expert = _train_like(like, folder, data, base, how, resume=resume)
    elif not data or not (folder or check):
        msg = f"give {'--data' if folder or check else 'FOLDER'}, or --like with --base."
        raise typer.BadParameter(msg)
    elif check or folder is None:
        _check(data, given, fields, about, base, as_json=as_json)
        return
    else:
        expert = _train(folder, data, given, fields, about, base, exemplars, how, resume=resume)
    if as_json:
        print_json(expert.card.as_dict())
        return
    typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")
    print_metrics({expert.name: expert.card.metrics})


def _train(
    folder: Path,
    data: list[Path],
    options: dict[str, Any],
    fields: "Fields",
    about: "About",
    base: str | None,
    exemplars: Path | None,
    how: "Publication",
    *,
    resume: bool,
) -> "Expert":
    from one4all_lc.training.qlora import train_expert
    from one4all_lc.training.recipe import Recipe

    return train_expert(
        folder,
        data,
        about=about,
        recipe=Recipe(**options),
        base=base,
        resume=resume,
        fields=fields,
        exemplars=exemplars,
        look=note_report,
        publication=how,
    )


def _train_like(
    like: Path,
    folder: Path | None,
    data: list[Path],
    base: str | None,
    how: "Publication",
    *,
    resume: bool,
) -> "Expert":
    from one4all_lc.training.like import Like, train_like
    from one4all_lc.training.qlora import default_base

    made = Like.read(like)
    return train_like(
        made,
        base or default_base(made.card.kind),
        folder=folder,
        data=data,
        resume=resume,
        look=note_report,
        publication=how,
    )


def _check(
    data: list[Path],
    options: dict[str, Any],
    fields: "Fields",
    about: "About",
    base: str | None,
    *,
    as_json: bool,
) -> None:
    from one4all_lc.training.qlora import default_base, look_at
    from one4all_lc.training.recipe import Recipe

    kind, prompt = about.kind or "chat", about.system_prompt or ""
    report = look_at(data, base or default_base(kind), Recipe(**options), fields, prompt, kind)
    if as_json:
        print_json(report.as_dict())
    else:
        note_report(report)
    if report.refused:
        raise typer.Exit(1)
