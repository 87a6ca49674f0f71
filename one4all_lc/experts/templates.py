"""Answers read as their tokenizer says: reasoning, text and tool calls as one base writes them.

A tokenizer may carry a *response template*, which undoes what its chat template does. Source:
https://huggingface.co/docs/transformers/main/chat_response_parsing
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from one4all_lc.experts.reading import Reader, Spacing, new_id, text_chunk
from one4all_lc.experts.tool_calls import Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALLS = "tool_calls"
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What response templates call the part of an answer that is not said aloud."""

_THOUGHTS = {
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "content": {},
    },
}
"""For bases that think as DeepSeek-R1 and Qwen3 do, if their tokenizers do not say how to read."""


def response_template(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any] | None:
    """Return how a tokenizer's answers are read; None if they are text and calls alone."""
    own: dict[str, Any] | None = getattr(tokenizer, "response_template", None)
    if own is None and "</think>" in str(tokenizer.chat_template or ""):
        return _THOUGHTS
    return own


def reasons(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a base's answers may hold reasoning, told apart from what is said aloud."""
    return not set(REASONING).isdisjoint((response_template(tokenizer) or {}).get("fields", {}))


class TemplateReader:
    """Reads an answer by a response template.

    Reasoning stands in `additional_kwargs["reasoning_content"]`, where `content_blocks` finds it.
    A call comes out whole, since only its end tells what it is; one that cannot be read is an
    invalid one.

    Args:
        template: The tokenizer's response template.
        prompt: What was asked; the template may begin the answer in it.
        tools: Those that may be called; their schemas give arguments their types.
        inner: Reads what is said aloud.
    """

    def __init__(
        self, template: Mapping[str, Any], prompt: str, tools: Sequence[Tool], inner: Reader
    ) -> None:
        from transformers.utils.chat_parsing.response_templates import load_response_template

        self._template = load_response_template(dict(template))
        self._tools = [dict(tool) for tool in tools]
        self._inner = inner
        self._spacing = Spacing()
        self._calls = 0
        self._field, self._raw, self._fed = "", "", ""
        self._restart(_begun(template, prompt))

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Add text; yield what has become certain."""
        for character in text:  # one by one: what the parser refuses must not take others with it
            self._fed += character
            try:
                events = self._parser.feed(character)
            except (ValueError, KeyError, TypeError):
                yield from self._refused()
            else:
                yield from self._told(events)

    def finish(self) -> Iterator[AIMessageChunk]:
        """Yield what is left."""
        try:
            _, events = self._parser.finalize()
        except (ValueError, KeyError, TypeError):  # cut off, or without a part that it should have
            events = []
            if self._field == CALLS:
                yield self._call(None, self._raw)
        yield from self._told(events)
        yield from (*self._inner.push(self._spacing.finish()), *self._inner.finish())

    def _restart(self, begun: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = ResponseParser(self._template, prefix=begun, tools=self._tools)
        self._field = self._raw = self._fed = ""
        for event in self._parser.initial_events:
            self._enter(event)

    def _enter(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "region_open":
            self._field, self._raw, self._fed = event["field"], "", ""
        elif event["type"] == "region_close":
            self._field = ""

    def _told(self, events: Sequence[Mapping[str, Any]]) -> Iterator[AIMessageChunk]:
        for event in events:
            self._enter(event)
            name = event["field"]
            self._spacing.alone &= name == "content"
            if event["type"] == "region_chunk":
                self._raw += event["text"]
                if name in REASONING:
                    yield _reasoned(event["text"])
                elif name == "content":
                    yield from self._inner.push(self._spacing.push(event["text"]))
            elif event["type"] == "region_close" and name == CALLS:
                yield from self._called(event["value"])

    def _called(self, value: Any) -> Iterator[AIMessageChunk]:
        for item in value if isinstance(value, list) else [value]:
            try:
                call = item.get("function", item)
                arguments = call.get("arguments", call.get("parameters", {}))
                written = arguments if isinstance(arguments, str) else json.dumps(arguments)
                yield self._call(str(call["name"]), written)
            except (AttributeError, KeyError, TypeError):
                yield self._call(None, self._raw)

    def _refused(self) -> Iterator[AIMessageChunk]:
        """Yield a part that cannot be read as what it is; go on after it."""
        raw, after = self._raw, self._fed[len(self._raw) :]
        if self._field == CALLS:
            yield self._call(None, raw)
        else:
            yield from text_chunk(raw)
        field = self._template.fields.get(self._field)
        closed = field.close_re.match(after) if field and field.close_re else None
        self._restart("")
        yield from self.push(after[closed.end() :] if closed else "")

    def _call(self, name: str | None, arguments: str) -> AIMessageChunk:
        part = tool_call_chunk(name=name, args=arguments, id=new_id(), index=self._calls)
        self._calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[part])


def _reasoned(text: str) -> AIMessageChunk:
    return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})


def _begun(template: Mapping[str, Any], prompt: str) -> str:
    """Return what the parser reads of the prompt: where the template has no anchor, its end."""
    if template is not _THOUGHTS:
        return prompt
    return "<think>" if prompt.rstrip().endswith("<think>") else ""
