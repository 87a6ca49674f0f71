"""Encoder experts in a conversation: one message is read as their kind's input, the result is said.

classify, tag    the text
pair             premise and hypothesis, a line or sentence each
extract          a text and a question about it, in paragraphs of their own or as sentences
"""

import re
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import run_in_executor

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.expert import Reading, TextExpert
from one4all_lc.experts.text.results import Classification, Entities, Extraction, Result
from one4all_lc.routing.question import question_of

_MARKS = "?؟；"
_SENTENCE = re.compile(r"(?<=[.!?؟。۔])\s+")
_NAMED = re.compile(
    r"\s*(premise|hypothesis|context|question|prémisse|hypothèse|contexte|متن|فرضیه|سوال|پرسش)"
    r"\s*[:：]\s*",
    re.IGNORECASE,
)


def input_of(kind: str, text: str) -> Any:
    """Return what an expert of a kind takes, read out of one text.

    Raises:
        InvalidInput: The text does not have what the kind needs.
    """
    if kind == "pair":
        return _pair(text)
    if kind == "extract":
        return _passage(text)
    return text


def is_whole(kind: str, text: str) -> bool:
    """Whether a text has all that a kind needs; a question alone has no passage."""
    try:
        input_of(kind, text)
    except InvalidInput:
        return False
    return True


def _pair(text: str) -> dict[str, str]:
    parts = _parts(text)
    if len(parts) == 1:
        parts = _SENTENCE.split(parts[0])
    if len(parts) < 2:
        msg = (
            "A pair expert judges a second text by a first one: give both, each on a line of its "
            "own."
        )
        raise InvalidInput(msg)
    return {"premise": " ".join(parts[:-1]), "hypothesis": parts[-1]}


def _passage(text: str) -> dict[str, str]:
    parts = _parts(text)
    if len(parts) == 1:
        parts = _SENTENCE.split(parts[0])
    asks = [i for i, part in enumerate(parts) if part.rstrip()[-1:] in _MARKS]
    at = asks[-1] if asks else len(parts) - 1
    rest = parts[:at] + parts[at + 1 :]
    if not rest:
        msg = (
            "An extract expert finds an answer in a text: give the text and a question about it, "
            "an empty line between them."
        )
        raise InvalidInput(msg)
    return {"question": parts[at], "context": "\n".join(rest)}


def _parts(text: str) -> list[str]:
    """Return the paragraphs or lines of a text, without what they are called."""
    lines = [_NAMED.sub("", line, count=1).strip() for line in text.strip().splitlines()]
    return [line for line in lines if line] or [""]


def result_from(kind: str, values: Any) -> Result:
    """Return a result that was written into `response_metadata["result"]`."""
    kinds: dict[str, type[Result]] = {"tag": Entities, "extract": Extraction}
    return kinds.get(kind, Classification).model_validate(values)


def as_message(expert: TextExpert[Result]) -> Runnable[Any, AIMessage]:
    """Return an encoder expert that takes messages and answers with one.

    The text of the answer is the result in words; `response_metadata` has `kind` and `result`.
    """

    def read(messages: Any) -> Reading[Result]:
        return expert.read(input_of(expert.kind, question_of(messages)))

    def answer(messages: Any) -> AIMessage:
        reading = read(messages)
        return _message(expert, reading, expert.answer(reading))

    async def aanswer(messages: Any) -> AIMessage:
        reading = await run_in_executor(None, read, messages)
        return _message(expert, reading, await expert.aanswer(reading))

    return RunnableLambda(answer, aanswer, name=expert.model)


def _message(expert: TextExpert[Result], reading: Reading[Result], result: Result) -> AIMessage:
    return AIMessage(
        content=result.said(),
        response_metadata={
            "model_name": expert.model,
            "model_provider": "one4all",
            "base": expert.engine.base.facts.id,
            "finish_reason": "stop",
            "expert": reading.expert.name,
            "version": reading.expert.card.version,
            "identity": reading.expert.identity,
            "kind": expert.kind,
            "result": result.model_dump(),
        },
        usage_metadata=UsageMetadata(
            input_tokens=reading.tokens, output_tokens=0, total_tokens=reading.tokens
        ),
    )
