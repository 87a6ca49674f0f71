"""How a chat model of this package answers: choose, ask the engine, hand out what comes."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import Field, SkipValidation

from one4all_lc.engine.engine import Engine
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Completion
from one4all_lc.experts.choice import Choice, as_chunk, as_message, joined
from one4all_lc.experts.options import OPTIONS
from one4all_lc.experts.tool_calls import CallReader, read_answer
from one4all_lc.experts.tracing import aannounce, announce, child_config
from one4all_lc.folder import Expert
from one4all_lc.routing.question import question_of


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
    ) -> Handle:
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
        configs = config if isinstance(config, list) else [config or {}] * len(inputs)
        wide = [{"max_concurrency": self.engine.max_rows, **item} for item in configs]
        return super().batch(inputs, wide, **kwargs)  # type: ignore[arg-type]

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
            output = choice.other.invoke(messages, child_config(run_manager))
            return _result(as_message(output, choice.facts))
        handle = self._submit(choice.experts, messages, stop, kwargs)
        try:
            return self._answer(choice, handle.result(), kwargs)
        finally:
            handle.cancel()

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
            output = await choice.other.ainvoke(messages, child_config(run_manager))
            return _result(as_message(output, choice.facts))
        handle = await run_in_executor(None, self._submit, choice.experts, messages, stop, kwargs)
        try:
            return self._answer(choice, await handle.aresult(), kwargs)
        finally:
            handle.cancel()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        choice = self._choose(messages, kwargs)
        announce(run_manager, choice)
        choice, messages = self._consult(choice, messages, stop, kwargs)
        if choice.other is not None:
            for output in choice.other.stream(messages, child_config(run_manager)):
                yield ChatGenerationChunk(message=as_chunk(output))
            yield _last(self._metadata(choice))
            return
        handle = self._submit(choice.experts, messages, stop, kwargs)
        reader = CallReader() if kwargs.get("tools") else None
        try:
            for piece in handle:
                yield from _chunks(reader, piece.text)
            yield from _chunks(reader, None)
            completion = handle.result()
            yield _last(self._metadata(choice, completion), _usage(completion))
        finally:  # a consumer that stops reading frees the row
            handle.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        choice = await self._achoose(messages, kwargs)
        await aannounce(run_manager, choice)
        choice, messages = await self._aconsult(choice, messages, stop, kwargs)
        if choice.other is not None:
            async for output in choice.other.astream(messages, child_config(run_manager)):
                yield ChatGenerationChunk(message=as_chunk(output))
            yield _last(self._metadata(choice))
            return
        handle = await run_in_executor(None, self._submit, choice.experts, messages, stop, kwargs)
        reader = CallReader() if kwargs.get("tools") else None
        try:
            async for piece in handle:
                for chunk in _chunks(reader, piece.text):
                    yield chunk
            for chunk in _chunks(reader, None):
                yield chunk
            completion = await handle.aresult()
            yield _last(self._metadata(choice, completion), _usage(completion))
        finally:
            handle.cancel()

    def _consult(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> tuple[Choice, list[BaseMessage]]:
        """Let the experts that are consulted answer, in one batch, and ask for one answer."""
        handles = self._ask_each(choice, messages, stop, settings)
        try:
            texts = [handle.result().text for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return _consulted(choice, messages, texts)

    async def _aconsult(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> tuple[Choice, list[BaseMessage]]:
        handles = self._ask_each(choice, messages, stop, settings)
        try:
            texts = [(await handle.aresult()).text for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return _consulted(choice, messages, texts)

    def _ask_each(
        self,
        choice: Choice,
        messages: list[BaseMessage],
        stop: list[str] | None,
        settings: Mapping[str, Any],
    ) -> list[Handle]:
        """Ask every expert that is consulted; tools and forms are for the last answer alone."""
        plain = {name: value for name, value in settings.items() if name not in OPTIONS}
        return [
            self._submit(((expert, 1.0),), messages, stop, plain) for expert in choice.consulted
        ]

    def _answer(
        self, choice: Choice, completion: Completion, settings: Mapping[str, Any]
    ) -> ChatResult:
        text = completion.text
        message = read_answer(text) if settings.get("tools") else AIMessage(text)
        message.response_metadata = self._metadata(choice, completion)
        message.usage_metadata = _usage(completion)
        return _result(message)

    def _metadata(self, choice: Choice, completion: Completion | None = None) -> dict[str, Any]:
        if completion is None:  # who has answered says more of itself
            return choice.facts
        return {
            "model_name": choice.name,
            "model_provider": "one4all",
            "base": self.engine.base.facts.id,
            "finish_reason": completion.finish_reason,
            "first_token_seconds": round(completion.first_token_seconds, 4),
            "seconds": round(completion.seconds, 4),
            **choice.facts,
        }


def _consulted(
    choice: Choice, messages: list[BaseMessage], texts: Sequence[str]
) -> tuple[Choice, list[BaseMessage]]:
    """Return who writes the one answer, and what is asked of it."""
    if not choice.consulted:
        return choice, messages
    names = [expert.name for expert in choice.consulted]
    answers = dict(zip(names, texts, strict=True))
    asked = joined(question_of(messages), answers)
    choice = replace(choice, metadata={**choice.metadata, "answers": answers})
    return choice, [*messages[:-1], HumanMessage(asked)]


def _chunks(reader: CallReader | None, text: str | None) -> Iterator[ChatGenerationChunk]:
    """Return what a reader can hand out of a text; None is its end."""
    if reader is not None:
        read = reader.finish() if text is None else reader.push(text)
        yield from (ChatGenerationChunk(message=message) for message in read)
    elif text:
        yield ChatGenerationChunk(message=AIMessageChunk(content=text))


def _last(metadata: Mapping[str, Any], usage: UsageMetadata | None = None) -> ChatGenerationChunk:
    """Return the last chunk: it alone carries usage, since merged chunks add theirs up."""
    message = AIMessageChunk(
        content="",
        response_metadata=dict(metadata),
        usage_metadata=usage,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _usage(completion: Completion) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=completion.prompt_tokens,
        output_tokens=len(completion.tokens),
        total_tokens=completion.prompt_tokens + len(completion.tokens),
        input_token_details=InputTokenDetails(cache_read=completion.cached_tokens),
    )
