"""Who answers, told to those who watch a run: an event before the first token, metadata, tags."""

import contextlib
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, ensure_config

from one4all_lc.experts.choice import Choice

EVENT = "route"
"""Name of the event that comes before the first token of a routed answer."""

AnyRun = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None

RUN: ContextVar[Any] = ContextVar("one4all_run", default=None)
"""The run that a stream belongs to, while it begins."""

_OF_A_RUN = (
    *("handlers", "inheritable_handlers", "parent_run_id", "tags", "inheritable_tags"),
    *("metadata", "inheritable_metadata"),
)


def announce(run: CallbackManagerForLLMRun | None, choice: Choice) -> None:
    """Tell who answers."""
    _note(run, choice)
    if run is not None and "route" in choice.metadata:
        dispatch_custom_event(EVENT, choice.facts, config=child_config(run))


async def aannounce(run: AsyncCallbackManagerForLLMRun | None, choice: Choice) -> None:
    """Tell who answers."""
    _note(run, choice)
    if run is not None and "route" in choice.metadata:
        await adispatch_custom_event(EVENT, choice.facts, config=child_config(run))


def child_config(run: AnyRun) -> RunnableConfig:
    """Return the config of what runs inside a run."""
    if run is None:
        return {}
    kind = CallbackManager if isinstance(run, CallbackManagerForLLMRun) else AsyncCallbackManager
    child = kind(handlers=[], parent_run_id=run.run_id)
    child.set_handlers(run.inheritable_handlers)
    child.add_tags(run.inheritable_tags)
    child.add_metadata(run.inheritable_metadata)
    return {"callbacks": child}


def _note(run: AnyRun, choice: Choice) -> None:
    """Write it into the run as tracers keep it: a run's own metadata cannot be changed any more."""
    facts = {key: value for key, value in choice.facts.items() if value is not None}
    for traced in _traced(run):
        traced.add_metadata({f"one4all_{key}": value for key, value in facts.items()})
        traced.add_tags([f"expert:{facts['expert']}"])


def _traced(run: AnyRun) -> Iterator[Any]:
    if run is not None:
        maps = [getattr(handler, "run_map", {}) for handler in run.handlers]
        yield from (runs[str(run.run_id)] for runs in maps if str(run.run_id) in runs)


@contextlib.contextmanager
def current(run: AnyRun) -> Iterator[None]:
    """Let `RUN` be a run: LangChain does not pass it on to methods that stream."""
    token = RUN.set(run)
    try:
        yield
    finally:
        RUN.reset(token)


def streamed_run(
    model: BaseChatModel, config: RunnableConfig | None, *, asynchronous: bool
) -> tuple[RunnableConfig, AnyRun]:
    """Return the config for a stream, and the run that LangChain will make of it."""
    config = ensure_config(config)
    managers: Any = AsyncCallbackManager if asynchronous else CallbackManager
    runs: Any = AsyncCallbackManagerForLLMRun if asynchronous else CallbackManagerForLLMRun
    manager = managers.configure(
        config.get("callbacks"),
        model.callbacks,
        model.verbose,
        config.get("tags"),
        model.tags,
        config.get("metadata"),
        model.metadata,
    )
    run_id = config.get("run_id") or uuid.uuid4()
    run = runs(run_id=run_id, **{name: getattr(manager, name) for name in _OF_A_RUN})
    return {**config, "callbacks": manager, "run_id": run_id}, run
