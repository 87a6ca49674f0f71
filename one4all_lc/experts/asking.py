"""How a chat model of this package answers: choose, ask the engine, hand out what comes."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, run_in_executor
from pydantic import Field, SkipValidation

from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Completion
from one4all_lc.experts.choice import Choice, as_chunk, as_message
from one4all_lc.experts.options import OPTIONS
from one4all_lc.experts.replies import Reply, consulted, last_chunk, result_of, usage
from one4all_lc.experts.tracing import RUN, aannounce, announce, child_config, current, streamed_run
from one4all_lc.folder import Expert


class EngineChatModel(BaseChatModel):
    """A chat model on an engine. Who answers is decided by its heirs, in `_choose`.

    Args:
        engine: The engine of the base.
    """

    engine: SkipValidation[Engine] = Field(exclude=True, repr=False)

    @abstractmethod
    def _choose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        """Decide who answers a call with these keywords."""

    @abstractmethod
    async def _achoose(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> Choice:
        """Decide who answers a call with these keywords."""

    @abstractmethod
    def _submit(
        self,
        experts: Sequence[tuple[Expert, float]],
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> Reply:
        """Render, and hand the request to the engine."""

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many at once: as many in parallel as the engine has rows, unless told otherwise.

        LangChain's own default follows the number of cores, which would leave most rows empty.
        """
        return super().batch(inputs, self._wide(config, len(inputs)), **kwargs)

    def batch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """Answer many at once, each as soon as it is done; see `batch`."""
        return super().batch_as_completed(inputs, self._wide(config, len(inputs)), **kwargs)

    def _wide(
        self, config: RunnableConfig | Sequence[RunnableConfig] | None, count: int
    ) -> list[RunnableConfig]:
        configs = get_config_list(config, count)
        return [{"max_concurrency": self.engine.max_rows, **item} for item in configs]

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer piece by piece."""
        config, run = streamed_run(self, config, asynchronous=False)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        try:
            with current(run):  # who answers is decided, and told, before the first piece
                chunk = next(chunks, None)
            while chunk is not None:
                yield chunk
                chunk = next(chunks, None)
        finally:
            chunks.close()  # type: ignore[attr-defined]

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Answer piece by piece."""
        config, run = streamed_run(self, config, asynchronous=True)
        chunks = super().astream(input, config, stop=stop, **kwargs)
        try:
            with current(run):
                chunk = await anext(chunks, None)
            while chunk is not None:
                yield chunk
                chunk = await anext(chunks, None)
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    def _generate_with_cache(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        with current(run_manager):
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        with current(run_manager):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        choice = self._choose(messages, kwargs)
        announce(run_manager, choice)
        choice, messages = self._consult(choice, messages, stop, kwargs)
        if choice.other is not None:
            other = _bound(choice.other, stop, kwargs)
            output = other.invoke(messages, child_config(run_manager))
            return result_of(as_message(output, choice.facts))
        reply = self._submit(choice.experts, messages, stop, kwargs)
        try:
            return self._answer(choice, reply, reply.handle.result())
        finally:
            reply.handle.cancel()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        choice = await self._achoose(messages, kwargs)
        await aannounce(run_manager, choice)
        choice, messages = await self._aconsult(choice, messages, stop, kwargs)
        if choice.other is not None:
            output = await _bound(choice.other, stop, kwargs).ainvoke(
                messages, child_config(run_manager)
            )
            return result_of(as_message(output, choice.facts))
        (reply,) = await _in_thread(lambda: [self._submit(choice.experts, messages, stop, kwargs)])
        try:
            return self._answer(choice, reply, await reply.handle.aresult())
        finally:
            reply.handle.cancel()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        run_manager = run_manager or RUN.get()
        choice = self._choose(messages, kwargs)
        announce(run_manager, choice)
        choice, messages = self._consult(choice, messages, stop, kwargs)
        if choice.other is not None:
            said: set[str] = set()  # what the other one has said of itself
            for output in _bound(choice.other, stop, kwargs).stream(
                messages, child_config(run_manager)
            ):
                told = as_chunk(output)
                said |= told.response_metadata.keys()
                yield ChatGenerationChunk(message=told)
            yield last_chunk({key: item for key, item in choice.facts.items() if key not in said})
            return
        reply = self._submit(choice.experts, messages, stop, kwargs)
        try:
            yield from reply.chunks()
            completion = reply.handle.result()
            yield last_chunk(self._metadata(choice, completion), usage(choice, completion))
        finally:  # a consumer that stops reading frees the row
            reply.handle.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        run_manager = run_manager or RUN.get()
        choice = await self._achoose(messages, kwargs)
        await aannounce(run_manager, choice)
        choice, messages = await self._aconsult(choice, messages, stop, kwargs)
        if choice.other is not None:
            said: set[str] = set()
            async for output in _bound(choice.other, stop, kwargs).astream(
                messages, child_config(run_manager)
            ):
                told = as_chunk(output)
                said |= told.response_metadata.keys()
                yield ChatGenerationChunk(message=told)
            yield last_chunk({key: item for key, item in choice.facts.items() if key not in said})
            return
        (reply,) = await _in_thread(lambda: [self._submit(choice.experts, messages, stop, kwargs)])
        try:
            async for chunk in reply.achunks():
                yield chunk
            completion = await reply.handle.aresult()
            yield last_chunk(self._metadata(choice, completion), usage(choice, completion))
        finally:
            reply.handle.cancel()

    def _consult(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> tuple[Choice, list[BaseMessage]]:
        """Let the experts that are consulted answer, in one batch, and ask for one answer."""
        replies = self._ask_each(choice, messages, stop, settings)
        try:
            answers = [(reply, reply.handle.result()) for reply in replies]
        finally:
            _cancel(replies)
        return consulted(choice, messages, answers)

    async def _aconsult(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> tuple[Choice, list[BaseMessage]]:
        asked = (choice, messages, stop, settings)
        replies = await _in_thread(self._ask_each, *asked) if choice.consulted else []
        try:
            answers = [(reply, await reply.handle.aresult()) for reply in replies]
        finally:
            _cancel(replies)
        return consulted(choice, messages, answers)

    def _ask_each(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> list[Reply]:
        """Ask every expert that is consulted; tools and forms are for the last answer alone."""
        plain = {name: value for name, value in settings.items() if name not in OPTIONS}
        replies: list[Reply] = []
        try:
            for expert in choice.consulted:
                replies.append(self._submit(((expert, 1.0),), messages, stop, plain))
        except BaseException:
            _cancel(replies)
            raise
        return replies

    def _answer(self, choice: Choice, reply: Reply, completion: Completion) -> ChatResult:
        message = reply.message(completion)
        message.response_metadata = self._metadata(choice, completion)
        message.usage_metadata = usage(choice, completion)
        return result_of(message)

    def _metadata(self, choice: Choice, completion: Completion) -> dict[str, Any]:
        return {
            "model_name": choice.name,
            "model_provider": "one4all",
            "base": self.engine.base.facts.id,
            "finish_reason": completion.finish_reason,
            "first_token_seconds": round(completion.first_token_seconds, 4),
            "seconds": round(completion.seconds, 4),
            **choice.facts,
        }


async def _in_thread(submit: Callable[..., list[Reply]], *args: Any) -> list[Reply]:
    """Submit without blocking the loop; who stops waiting leaves nothing running."""
    future = asyncio.ensure_future(run_in_executor(None, submit, *args))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_cancel_submitted)
        raise


def _cancel_submitted(future: "asyncio.Future[list[Reply]]") -> None:
    if not future.cancelled() and future.exception() is None:
        _cancel(future.result())


def _cancel(replies: Sequence[Reply]) -> None:
    for reply in replies:
        reply.handle.cancel()


def _bound(
    other: Runnable[Any, Any], stop: list[str] | None, settings: Mapping[str, Any]
) -> Runnable[Any, Any]:
    """Return who answers in the engine's place with the tools and the form asked of the answer."""
    if not isinstance(other, BaseChatModel):
        return other
    kept = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
    if stop:
        kept["stop"] = stop
    tools = kept.pop("tools", None)
    return other.bind_tools(tools, **kept) if tools else other.bind(**kept)
