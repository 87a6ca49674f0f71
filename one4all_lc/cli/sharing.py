"""`one4all adopt` and `one4all push`: experts from elsewhere, and for others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from one4all_lc.cli.common import AsJson, Base, app, folder_of, loading, print_json
from one4all_lc.cli.versions import Keep, Metric
from one4all_lc.publishing import KEPT

if TYPE_CHECKING:
    from one4all_lc.adopting import Adoption
    from one4all_lc.folder import Expert

Exemplars = Annotated[
    Path | None, typer.Option(help='JSONL of {"text", "language"}: what it is asked.')
]
SameBase = Annotated[bool, typer.Option("--same-base", help="It names this base by another name.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="As the next version of the expert of that name.")
]


@app.command()
def adopt(
    source: Annotated[str, typer.Argument(help="A folder of a PEFT LoRA, or its id on the hub.")],
    description: Annotated[str | None, typer.Option(help="What the expert is for.")] = None,
    exemplars: Exemplars = None,
    name: Annotated[str | None, typer.Option(help="By default made from the source's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    title: Annotated[str | None, typer.Option(help="A few words for people.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Before every conversation.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639-1; again for more.")] = None,
    license: Annotated[str | None, typer.Option(help="Its data's license.")] = None,  # noqa: A002
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="Most of an answer.")] = None,
    metric: Metric = None,
    adapters: Annotated[Path | None, typer.Option(help="Made if need be.")] = None,
    base: Base = None,
    same_base: SameBase = False,
    replace: Replace = False,
    keep: Keep = KEPT,
    as_json: AsJson = False,
) -> None:
    """Make an expert of a PEFT LoRA that was made elsewhere."""
    from one4all_lc.adopting import Adoption

    languages = tuple(language) if language else None
    generation = {"max_tokens": answer_tokens} if answer_tokens else None
    said = (name, title, description, languages, system_prompt, generation, license, metric)
    about = Adoption(*said, exemplars, same_base=same_base, replace=replace)
    expert = _adopted(source, about, adapters, base, revision, keep)
    if as_json:
        print_json({**expert.card.as_dict(), "identity": expert.identity})
    else:
        typer.echo(f"{expert.name} version {expert.card.version} is in {expert.folder}")


def _adopted(
    source: str,
    about: "Adoption",
    adapters: Path | None,
    base: str | None,
    revision: str | None,
    keep: int,
) -> "Expert":
    from one4all_lc.adopting import adopt as taken
    from one4all_lc.base.loading import DEFAULT_BASE, describe

    place, base = folder_of(adapters), base or DEFAULT_BASE
    with loading(base):
        facts = describe(base)
    return taken(source, place, facts, about, revision=revision, keep=keep)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The expert's folder.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new one is private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; by default main.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the model card and upload nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put an expert on the Hugging Face hub, with a model card."""
    from one4all_lc import sharing
    from one4all_lc.folder import read_expert

    if dry_run:
        card = sharing.model_card(read_expert(folder), repo_id)
        if as_json:
            print_json({"repo_id": repo_id, "model_card": card})
        else:
            typer.echo(card)
        return
    url = sharing.push(folder, repo_id, private=private, revision=revision, message=message)
    if as_json:
        print_json({"repo_id": repo_id, "commit": url})
        return
    typer.echo(url)
