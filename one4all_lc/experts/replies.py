"""What the engine hands out, as LangChain's messages: pieces, whole answers, what they took."""

import functools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Completion
from one4all_lc.experts.choice import Choice, joined
from one4all_lc.experts.messages import role_of
from one4all_lc.experts.reading import Reader, read
from one4all_lc.routing.question import question_of


@dataclass
class Reply:
    """An answer on its way. It is read once: piece by piece, or as a whole.

    Attributes:
        handle: The engine's.
        reader: What makes messages of its text.
        end_tokens: The tokens that end an answer; one that ends otherwise was cut off.
    """

    handle: Handle
    reader: Reader
    end_tokens: frozenset[int]

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """Yield what can be said, as it comes."""
        for piece in self.handle:
            yield from map(_chunk, self.reader.push(piece.text))
        yield from map(_chunk, self.reader.finish(ended=self._ended(self.handle.result())))

    async def achunks(self) -> AsyncIterator[ChatGenerationChunk]:
        """Yield what can be said, as it comes."""
        async for piece in self.handle:
            for message in self.reader.push(piece.text):
                yield _chunk(message)
        ended = self._ended(await self.handle.aresult())
        for message in self.reader.finish(ended=ended):
            yield _chunk(message)

    def message(self, completion: Completion) -> AIMessage:
        """Return the whole answer."""
        return read(self.reader, completion.text, ended=self._ended(completion))

    def _ended(self, completion: Completion) -> bool:
        return bool(completion.tokens) and completion.tokens[-1] in self.end_tokens


def consulted(
    choice: Choice, messages: list[BaseMessage], answers: Sequence[tuple[Reply, Completion]]
) -> tuple[Choice, list[BaseMessage]]:
    """Return who writes the one answer, and what is asked of it."""
    if not choice.consulted:
        return choice, messages
    said = {
        expert.name: text
        for expert, (reply, completion) in zip(choice.consulted, answers, strict=True)
        if (text := reply.message(completion).text).strip()
    }
    asked = joined(question_of(messages), said)
    spent = functools.reduce(add_usage, (usage_of(completion) for _, completion in answers))
    choice = replace(choice, metadata={**choice.metadata, "answers": said}, spent=spent)
    last = max(i for i, item in enumerate(messages) if role_of(item) == "user")
    return choice, [*messages[:last], HumanMessage(asked), *messages[last + 1 :]]


def _chunk(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)


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
