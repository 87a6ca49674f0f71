"""`one4all ask` and `one4all route`: questions, their experts and the answers."""

import itertools
import time
from dataclasses import dataclass
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
from one4all_lc.cli.direction import isolated, shown
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.messages import AIMessage

    from one4all_lc.base.loading import SharedBase
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
    team = _load(adapters, base, quantization, expert)
    loaded = time.monotonic()
    route = team.route(question) if team.route else None
    model = expert or (route.best if route else None) or BASE
    routed = time.monotonic()
    chunks = team.ask(question, model, {"max_tokens": max_tokens} if max_tokens else {})
    whole = next(chunks)  # a question that is refused is refused before anything is printed
    first = time.monotonic()
    note(f"{model}: {route.explain(_quoted) if route else 'as asked.'}")
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
        shared = team.bases[-1 if "result" in whole.response_metadata else 0]
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
        typer.echo(f"{item.best or 'base'}\t{isolated(item.question)}")
        if explain:
            print_route(item)
        note(f"  {item.explain(_quoted)}")


@dataclass(frozen=True)
class Loaded:
    """What a question is asked of.

    Attributes:
        ask: Streams an answer, by question, expert's name and settings.
        route: Finds whose question it is; None where that was said.
        bases: Those that are loaded, the decoder first.
    """

    ask: "Callable[[str, str, dict[str, Any]], Iterator[AIMessage]]"
    route: "Callable[[str], Route] | None"
    bases: "tuple[SharedBase, ...]"


def _load(adapters: Path | None, base: str | None, quantization: str, expert: str | None) -> Loaded:
    """Load what is asked: the bare base, one expert, or everything to choose from."""
    from one4all_lc.card import BASE
    from one4all_lc.head import CHAT

    if expert is None:
        return _everybody(folder_of(adapters), base, quantization)
    if expert != BASE and library_of(adapters)[expert].card.kind != CHAT:
        return _encoders(folder_of(adapters), base, quantization, expert)
    return _decoders(None if expert == BASE else folder_of(adapters), base, quantization, expert)


def _everybody(folder: Path, base: str | None, quantization: str) -> Loaded:
    from one4all_lc.base.loading import DEFAULT_BASE
    from one4all_lc.library import encoder_of
    from one4all_lc.one4all import One4All
    from one4all_lc.routing.embeddings import MODEL

    encoder = encoder_of(folder)
    which: dict[str, Any] = {"base": base or DEFAULT_BASE, "quantization": quantization}
    with loading(which["base"], MODEL, *([encoder] if encoder else [])):
        one = One4All.load(folder, **which)
        one.router.refresh()
    bases = (one.engine.base, *([one.encoder.base] if one.encoder else []))
    return Loaded(_streaming(one), one.route, bases)


def _decoders(folder: Path | None, base: str | None, quantization: str, expert: str) -> Loaded:
    from one4all_lc.base.loading import DEFAULT_BASE, SharedBase
    from one4all_lc.engine.engine import Engine
    from one4all_lc.experts.chat import ChatExpert
    from one4all_lc.library import Library

    which: dict[str, Any] = {"base": base or DEFAULT_BASE, "quantization": quantization}
    with loading(which["base"]):
        shared = SharedBase.load(**which)
        library = Library(folder, shared.facts)
        chat = ChatExpert(engine=Engine.of(shared), library=library, model=expert)
    return Loaded(_streaming(chat), None, (shared,))


def _encoders(folder: Path, base: str | None, quantization: str, expert: str) -> Loaded:
    from one4all_lc.base.loading import SharedBase
    from one4all_lc.engine.encoders import EncoderEngine
    from one4all_lc.experts.text import text_expert
    from one4all_lc.experts.text.asking import as_message
    from one4all_lc.library import Library

    named = base or Library(folder)[expert].card.base
    with loading(named):
        shared = SharedBase.load(named, quantization=quantization)  # type: ignore[arg-type]
        library = Library(folder, shared.facts)
        reader = text_expert(engine=EncoderEngine.of(shared), library=library, model=expert)
    answering = as_message(reader)
    return Loaded(lambda question, *_: answering.stream(question), None, (shared,))


def _streaming(
    chat: "ChatExpert",
) -> "Callable[[str, str, dict[str, Any]], Iterator[AIMessage]]":
    return lambda question, model, settings: chat.stream(question, model=model, **settings)


def _shown(first: "AIMessage", rest: "Iterator[AIMessage]", *, quietly: bool) -> "AIMessage":
    """Print chunks as they come; return all of them as one."""
    whole: Any = first
    for chunk in itertools.chain([first], rest):
        if not quietly:
            typer.echo(_said(chunk), nl=False)
        whole = chunk if chunk is first else whole + chunk
    if not quietly:
        typer.echo()
    return whole  # type: ignore[no-any-return]


def _said(message: "AIMessage") -> str:
    """Return a message's text as a terminal shows it: what an expert has found is composed."""
    facts = message.response_metadata
    if "result" not in facts:
        return str(message.text)
    from one4all_lc.experts.text.asking import result_from

    return shown(result_from(facts["kind"], facts["result"]).said)


def _quoted(text: str) -> str:
    return f"'{isolated(text)}'"


def _answer(
    message: "AIMessage", route: "Route | None", seconds: dict[str, float]
) -> dict[str, Any]:
    metadata, usage = message.response_metadata, message.usage_metadata
    assert usage is not None  # the last chunk always carries it
    return {
        "answer": message.text,
        "expert": metadata["expert"],
        "version": metadata["version"],
        **{name: metadata[name] for name in ("kind", "result") if name in metadata},
        "route": route.as_dict() if route else None,
        "usage": {name: usage[name] for name in ("input_tokens", "output_tokens")},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
