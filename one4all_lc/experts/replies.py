"""What the engine hands out, as LangChain's messages: pieces, whole answers, what they took."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from one4all_lc.engine.request import Completion
from one4all_lc.experts.choice import Choice, joined
from one4all_lc.experts.messages import role_of
from one4all_lc.experts.tool_calls import CallReader
from one4all_lc.routing.question import question_of


def consulted(
    choice: Choice, messages: list[BaseMessage], completions: Sequence[Completion]
) -> tuple[Choice, list[BaseMessage]]:
    """Return who writes the one answer, and what is asked of it."""
    if not choice.consulted:
        return choice, messages
    names = [expert.name for expert in choice.consulted]
    answers = {name: done.text for name, done in zip(names, completions, strict=True)}
    asked = joined(question_of(messages), answers)
    spent = functools.reduce(add_usage, map(usage_of, completions))
    choice = replace(choice, metadata={**choice.metadata, "answers": answers}, spent=spent)
    last = max(i for i, item in enumerate(messages) if role_of(item) == "user")
    return choice, [*messages[:last], HumanMessage(asked), *messages[last + 1 :]]


def chunks_of(reader: CallReader | None, text: str | None) -> Iterator[ChatGenerationChunk]:
    """Return what a reader can hand out of a text; None is its end."""
    if reader is not None:
        read = reader.finish() if text is None else reader.push(text)
        yield from (ChatGenerationChunk(message=message) for message in read)
    elif text:
        yield ChatGenerationChunk(message=AIMessageChunk(content=text))


def last_chunk(
    metadata: Mapping[str, Any], usage: UsageMetadata | None = None
) -> ChatGenerationChunk:
    """Return the last chunk: it alone carries usage, since merged chunks add theirs up."""
    message = AIMessageChunk(
        content="",
        response_metadata=dict(metadata),
        usage_metadata=usage,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def result_of(message: AIMessage) -> ChatResult:
    """Return a message as LangChain's caches and callbacks take it."""
    return ChatResult(generations=[ChatGeneration(message=message)])


def usage(choice: Choice, completion: Completion) -> UsageMetadata:
    """Return what an answer took, with those that it was made of."""
    return add_usage(choice.spent, usage_of(completion))


def usage_of(completion: Completion) -> UsageMetadata:
    """Return what one request has read and written."""
    return UsageMetadata(
        input_tokens=completion.prompt_tokens,
        output_tokens=len(completion.tokens),
        total_tokens=completion.prompt_tokens + len(completion.tokens),
        input_token_details=InputTokenDetails(cache_read=completion.cached_tokens),
    )
