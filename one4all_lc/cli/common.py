"""What the commands share: options, what is printed where, and what is loaded how."""

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from one4all_lc.library import Library
    from one4all_lc.routing.embeddings import QuestionEmbeddings

app = typer.Typer(
    help="Many domain experts on one small model.", no_args_is_help=True, add_completion=False
)
notes = Console(stderr=True, highlight=False)

Adapters = Annotated[Path | None, typer.Option(help="The folder of experts; by default adapters/.")]
Base = Annotated[
    str | None, typer.Option(help="Id or path of the base; by default SmolLM2-135M-Instruct.")
]
Quantization = Annotated[str, typer.Option(help="auto, nf4, int8 or none.")]
Embedder = Annotated[
    str | None, typer.Option(help="Id or path of the embedder; by default multilingual-e5-small.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def folder_of(adapters: Path | None) -> Path:
    """Return the folder of experts that is meant."""
    from one4all_lc.library import default_adapters

    return adapters or default_adapters()


def library_of(adapters: Path | None) -> "Library":
    """Read and check the experts, without a base."""
    from one4all_lc.library import Library

    return Library(folder_of(adapters))


def embedder_of(embedder: str | None) -> "QuestionEmbeddings":
    """Return the embedder that is meant, its model fetched."""
    from one4all_lc.base.embedded import resolve
    from one4all_lc.routing.embeddings import QuestionEmbeddings, default_embeddings

    embeddings = default_embeddings() if embedder is None else QuestionEmbeddings(embedder)
    resolve(embeddings.model_name)
    return embeddings


@contextlib.contextmanager
def loading(*models: str) -> Iterator[None]:
    """Show that something is being loaded.

    Models that must be fetched are fetched before, under a progress bar of their own. Garbage is
    not collected meanwhile: that would look through all that stays, for two seconds.
    """
    from one4all_lc.base.embedded import resolve

    for model in models:
        resolve(model)
    gc.disable()
    try:
        with notes.status("loading"):
            yield
    finally:
        gc.freeze()
        gc.enable()


def note(text: str) -> None:
    """Print a line on standard error, as it is: exemplars may look like rich's markup."""
    notes.print(text, style="dim", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
