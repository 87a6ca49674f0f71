"""The command line: `one4all`.

Results go to standard output, with `--json` as one document; progress, the route and errors go to
standard error. Exit codes: 0 done, 1 the input was refused, 2 usage.
"""

import atexit
import contextlib
import gc
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from one4all_lc.errors import InvalidInput, One4AllError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.messages import AIMessageChunk

    from one4all_lc.experts.chat import ChatExpert
    from one4all_lc.library import Library
    from one4all_lc.routing.route import Route

app = typer.Typer(
    help="Many domain experts on one small model.", no_args_is_help=True, add_completion=False
)
_notes = Console(stderr=True, highlight=False)

Adapters = Annotated[Path | None, typer.Option(help="The folder of experts; by default adapters/.")]
Base = Annotated[
    str | None, typer.Option(help="Id or path of the base; by default SmolLM2-135M-Instruct.")
]
Quantization = Annotated[str, typer.Option(help="auto, nf4, int8 or none.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    expert: Annotated[str | None, typer.Option(help="Ask this one; 'base' asks none.")] = None,
    adapters: Adapters = None,
    base: Base = None,
    quantization: Quantization = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Route a question to its expert and stream the answer."""
    from one4all_lc.card import BASE

    started = time.monotonic()
    if not question.strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    if expert != BASE:
        library = _library(adapters)  # what is wrong with it is said before anything is loaded
        if expert is not None:
            library[expert]
    one = _load(adapters, base, quantization, expert)
    loaded = time.monotonic()
    route = one.router.invoke(question) if expert is None else None  # type: ignore[attr-defined]
    model = expert or (route.best if route else None) or BASE
    routed = time.monotonic()
    settings: dict[str, Any] = {"max_tokens": max_tokens} if max_tokens else {}
    chunks = one.stream(question, model=model, **settings)
    whole = next(chunks)  # a question that is refused is refused before anything is printed
    first = time.monotonic()
    _note(f"{model}: {route.explain() if route else 'as asked.'}")
    whole = _shown(whole, chunks, quietly=as_json)
    seconds = {
        "load": loaded - started,
        "route": routed - loaded,
        "first_token": first - routed,
        "total": time.monotonic() - started,
    }
    if as_json:
        _print_json(_answer(whole, route, seconds))
    else:
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        shared = one.engine.base
        _note(f"{parts}; base {shared.quantization}, {shared.memory_bytes / 1e6:.0f} MB")


@app.command()
def route(
    questions: Annotated[list[str], typer.Argument(help="What would be asked.")],
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Show which expert each question goes to, and why."""
    from one4all_lc.routing.embeddings import MODEL
    from one4all_lc.routing.router import SemanticRouter

    library = _library(adapters)
    with _loading(MODEL):
        routes = SemanticRouter(library=library).batch(list(questions))
    if as_json:
        _print_json([item.as_dict() for item in routes])
        return
    for item in routes:
        typer.echo(f"{item.best or 'base'}\t{item.question}")
        _note(f"  {item.explain()}")


@app.command()
def experts(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """List the experts in use."""
    library = _library(adapters)
    if as_json:
        _print_json([{**expert.card.as_dict(), "identity": expert.identity} for expert in library])
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
        _print_json(reports)
    for report in reports:
        if not report["fit"]:
            typer.echo(f"one4all: {report['reason']}", err=True)
        elif not as_json:
            typer.echo(f"{report['folder']} is fit: identity {report['identity'][:16]}")
    if not all(report["fit"] for report in reports):
        raise typer.Exit(1)


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
        _print_json(expert.card.as_dict())
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

    library = _library(adapters)
    named = {path: library[path.stem] for path in data}
    metrics = {}
    for path, expert in named.items():
        with _notes.status(f"measuring {expert.name}"):
            metrics[expert.name] = measure(
                expert.folder,
                read_rows([path]),
                base or DEFAULT_BASE,
                quantization=quantization,  # type: ignore[arg-type]
                scored=limit or SCORED_ROWS,
                answered=limit or ANSWERED_ROWS,
            )
    if as_json:
        _print_json(metrics)
    else:
        _print_metrics(metrics)


def _folder(adapters: Path | None) -> Path:
    from one4all_lc.library import default_adapters

    return adapters or default_adapters()


def _library(adapters: Path | None) -> "Library":
    from one4all_lc.library import Library

    return Library(_folder(adapters))


def _load(
    adapters: Path | None, base: str | None, quantization: str, expert: str | None
) -> "ChatExpert":
    """Load what is asked: the bare base, one expert, or everything to choose from."""
    from one4all_lc.base.loading import DEFAULT_BASE, SharedBase
    from one4all_lc.card import BASE
    from one4all_lc.engine.engine import Engine
    from one4all_lc.experts.chat import ChatExpert
    from one4all_lc.library import Library
    from one4all_lc.one4all import One4All

    which: dict[str, Any] = {"base": base or DEFAULT_BASE, "quantization": quantization}
    from one4all_lc.routing.embeddings import MODEL

    with _loading(which["base"], *([MODEL] if expert is None else [])):
        if expert is None:
            one = One4All.load(_folder(adapters), **which)
            one.router.refresh()
            return one
        shared = SharedBase.load(**which)
        library = Library(None if expert == BASE else _folder(adapters), shared.facts)
        return ChatExpert(engine=Engine.of(shared), library=library, model=expert)


@contextlib.contextmanager
def _loading(*models: str) -> "Iterator[None]":
    """Show that something is being loaded.

    Models that must be fetched are fetched before, under a progress bar of their own. Garbage is
    not collected meanwhile: that would look through all that stays, for two seconds.
    """
    from one4all_lc.base.embedded import resolve

    for model in models:
        resolve(model)
    gc.disable()
    try:
        with _notes.status("loading"):
            yield
    finally:
        gc.freeze()
        gc.enable()


def _shown(
    first: "AIMessageChunk", rest: "Iterator[AIMessageChunk]", *, quietly: bool
) -> "AIMessageChunk":
    """Print chunks as they come; return all of them as one."""
    whole = first
    for chunk in itertools.chain([first], rest):
        if not quietly:
            typer.echo(chunk.text, nl=False)
        whole = chunk if chunk is first else whole + chunk
    if not quietly:
        typer.echo()
    return whole


def _answer(
    message: "AIMessageChunk", route: "Route | None", seconds: dict[str, float]
) -> dict[str, Any]:
    metadata, usage = message.response_metadata, message.usage_metadata
    assert usage is not None  # the last chunk always carries it
    return {
        "answer": message.text,
        "expert": metadata["expert"],
        "version": metadata["version"],
        "route": route.as_dict() if route else None,
        "usage": {name: usage[name] for name in ("input_tokens", "output_tokens")},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _note(text: str) -> None:
    """Print a line on standard error, as it is: exemplars may look like rich's markup."""
    _notes.print(text, style="dim", markup=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print_metrics(metrics: dict[str, Any]) -> None:
    table = Table("expert", "metric", "base", "expert", "rows")
    for name, values in metrics.items():
        for metric, figures in values.items():
            if isinstance(figures, dict):
                row = (f"{figures['base']:.3f}", f"{figures['expert']:.3f}", str(figures["rows"]))
                table.add_row(name, metric, *row)
    Console().print(table)


def main() -> None:
    """Run `one4all` and raise SystemExit with its code."""
    try:
        app()
    except One4AllError as error:
        typer.echo(f"one4all: {error}", err=True)
        sys.exit(1)


def run() -> None:
    """Run `one4all` as a process, and leave at once when it is done.

    Python would take the models apart object by object, which takes another two seconds.
    """
    code: object = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads any more
                stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    run()
