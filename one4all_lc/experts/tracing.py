"""Who answers, told to those who watch a run: an event before the first token, metadata, tags."""

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.runnables import RunnableConfig

from one4all_lc.experts.choice import Choice

EVENT = "route"
"""Name of the event that comes before the first token of a routed answer."""

AnyRun = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None


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
        traced.add_tags([f"expert:{choice.name}"])


def _traced(run: AnyRun) -> Iterator[Any]:
    if run is not None:
        maps = [getattr(handler, "run_map", {}) for handler in run.handlers]
        yield from (runs[str(run.run_id)] for runs in maps if str(run.run_id) in runs)
