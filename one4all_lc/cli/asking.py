"""`one4all ask` and `one4all route`: questions, their experts and the answers."""

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from one4all_lc.cli.common import (
    Adapters,
    AsJson,
    Base,
    Embedder,
    Quantization,
    app,
    embedder_of,
    folder_of,
    library_of,
    loading,
    note,
    print_json,
)
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.messages import AIMessageChunk

    from one4all_lc.experts.chat import ChatExpert
    from one4all_lc.routing.route import Route


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
        library = library_of(adapters)  # what is wrong with it is said before anything is loaded
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
    note(f"{model}: {route.explain() if route else 'as asked.'}")
    whole = _shown(whole, chunks, quietly=as_json)
    seconds = {
        "load": loaded - started,
        "route": routed - loaded,
        "first_token": first - routed,
        "total": time.monotonic() - started,
    }
    if as_json:
        print_json(_answer(whole, route, seconds))
    else:
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        shared = one.engine.base
        note(f"{parts}; base {shared.quantization}, {shared.memory_bytes / 1e6:.0f} MB")


@app.command()
def route(
    questions: Annotated[list[str], typer.Argument(help="What would be asked.")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Scores, thresholds and nearest exemplars.")
    ] = False,
    adapters: Adapters = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Show which expert each question goes to, and why."""
    from one4all_lc.cli.explaining import print_route
    from one4all_lc.routing.router import SemanticRouter

    library = library_of(adapters)
    embeddings = embedder_of(embedder)
    with loading():
        routes = SemanticRouter(library=library, embeddings=embeddings).batch(list(questions))
    if as_json:
        print_json([item.as_dict() for item in routes])
        return
    for item in routes:
        typer.echo(f"{item.best or 'base'}\t{item.question}")
        if explain:
            print_route(item)
        note(f"  {item.explain()}")


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

    with loading(which["base"], *([MODEL] if expert is None else [])):
        if expert is None:
            one = One4All.load(folder_of(adapters), **which)
            one.router.refresh()
            return one
        shared = SharedBase.load(**which)
        library = Library(None if expert == BASE else folder_of(adapters), shared.facts)
        return ChatExpert(engine=Engine.of(shared), library=library, model=expert)


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
