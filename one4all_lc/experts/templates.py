"""Answers read as their tokenizer says: reasoning, text and tool calls as one base writes them.

A tokenizer may carry a *response template*, which undoes what its chat template does. Source:
https://huggingface.co/docs/transformers/main/chat_response_parsing
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, ToolCall
from langchain_core.messages.tool import tool_call_chunk

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.reading import Reader, Spacing, TextReader, new_id, read, text_chunk, unfit
from one4all_lc.experts.tool_calls import CALLS, Tool, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING = ("reasoning_content", "reasoning", "thinking")
"""What response templates call the part of an answer that is not said aloud."""

THINK = "<think>"

_THOUGHTS: dict[str, Any] = {
    "start_anchor": "<|assistant|>",
    "fields": {
        # Before the first word alone: an answer may be about the tag.
        "reasoning_content": {"open_pattern": rf"\A\s*{THINK}", "close": "</think>"},
        "content": {},
    },
}
"""For bases that think as DeepSeek-R1 and Qwen3 do, if their tokenizers do not say how to read."""

_REFUSED = (ValueError, KeyError, TypeError)
"""What the parser raises where a part is not what the template says."""


def response_template(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any] | None:
    """Return how a tokenizer's answers are read; None if they are text and calls alone."""
    own: dict[str, Any] | None = getattr(tokenizer, "response_template", None)
    if own is None and "</think>" in str(tokenizer.chat_template or ""):
        return _THOUGHTS
    return own


def reasons(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a base's answers may hold reasoning, told apart from what is said aloud."""
    return not set(REASONING).isdisjoint((response_template(tokenizer) or {}).get("fields", {}))


def may_think(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's chat template lets one choose whether the base thinks first."""
    return "enable_thinking" in str(tokenizer.chat_template or "")


def needs_special_tokens(
    template: Mapping[str, Any] | None, tokenizer: "PreTrainedTokenizerBase"
) -> bool:
    """Whether reading by a template takes the tokens that a text usually leaves out."""
    if template is _THOUGHTS:
        return THINK in tokenizer.all_special_tokens
    return template is not None


def reads_written_calls(template: Mapping[str, Any]) -> bool:
    """Whether a template reads calls as `tool_calls.written` writes them."""
    return _reads_written_calls(json.dumps(template, sort_keys=True))


@lru_cache
def _reads_written_calls(template: str) -> bool:
    call = ToolCall(name="probe", args={"a": 1}, id=None)
    reader = TemplateReader(json.loads(template), "", (), TextReader())
    found = read(reader, written([call])).tool_calls
    return [(item["name"], item["args"]) for item in found] == [("probe", {"a": 1})]


def thought_over(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int]) -> list[int]:
    """Return what ends the thought that a prompt has begun: an answer of a form has none."""
    if not str(tokenizer.decode(list(prompt[-8:]))).rstrip().endswith(THINK):
        return []
    return list(tokenizer.encode("\n</think>\n\n", add_special_tokens=False))


class TemplateReader:
    """Reads an answer by a response template.

    Reasoning stands in `additional_kwargs["reasoning_content"]`, where `content_blocks` finds it.
    A call comes out whole, since only its end tells what it is; one that cannot be read, or was cut
    off, is an invalid one.

    Args:
        template: The tokenizer's response template.
        prompt: What was asked; the template may begin the answer in it.
        tools: Those that may be called; their schemas give arguments their types.
        inner: Reads what is said aloud.
        many: Whether calls after the first one count.

    Raises:
        InvalidInput: The template is not one.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        prompt: str,
        tools: Sequence[Tool],
        inner: Reader,
        *,
        many: bool = True,
    ) -> None:
        self._template = _loaded(template)
        self._tools = [dict(tool) for tool in tools]
        self._inner, self._many = inner, many
        self._spacing = Spacing()
        self._calls = 0
        self._restart(self._begun(template, prompt))

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Add text; yield what has become certain."""
        events: list[Mapping[str, Any]] = []
        for character in text:  # one by one: what the parser refuses must not take others with it
            try:
                events += self._parser.feed(character)
            except _REFUSED:
                yield from self._told(events)
                yield from self._refused()
                events = []
        yield from self._told(events)

    def finish(self, *, ended: bool = True) -> Iterator[AIMessageChunk]:
        """Yield what is left; a call that was begun counts only if the answer was ended there."""
        field = self._template.fields.get(self._field)
        if not ended and self._field == CALLS and field.close_re is not None:
            yield self._call(None, self._parser._body + self._rest())
        else:
            try:
                _, events = self._parser.finalize()
            except _REFUSED:
                events = []
                yield from self._unread(self._parser._body)
            yield from self._told(events)
        yield from (*self._inner.push(self._spacing.finish()), *self._inner.finish())

    def _begun(self, template: Mapping[str, Any], prompt: str) -> str:
        """Return what the parser reads of the prompt: the beginning of the answer in it, if any."""
        if template is _THOUGHTS:
            return THINK if prompt.rstrip().endswith(THINK) else ""
        return prompt if self._template.start_anchor_re.search(prompt) else ""

    def _restart(self, begun: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = ResponseParser(self._template, prefix=begun, tools=self._tools)
        self._field = ""
        for event in self._parser.initial_events:
            self._enter(event)

    def _enter(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "region_open":
            self._field = event["field"]
        elif event["type"] == "region_close":
            self._field = ""

    def _rest(self) -> str:
        """Return what was fed and not read yet; the parser keeps that to itself."""
        return str(self._parser._buffer[self._parser._pos :])

    def _told(self, events: Sequence[Mapping[str, Any]]) -> Iterator[AIMessageChunk]:
        for event in _joined(events):
            self._enter(event)
            name = event["field"]
            self._spacing.alone &= name == "content"
            if event["type"] == "region_chunk" and name in REASONING:
                yield AIMessageChunk(
                    content="", additional_kwargs={"reasoning_content": event["text"]}
                )
            elif event["type"] == "region_chunk" and name == "content":
                yield from self._inner.push(self._spacing.push(event["text"]))
            elif event["type"] == "region_close" and name == CALLS:
                yield from self._called(event["value"])

    def _called(self, value: Any) -> Iterator[AIMessageChunk]:
        for item in value if isinstance(value, list) else [value]:
            if self._calls and not self._many:
                return
            try:
                call = item.get("function", item)
                arguments = call.get("arguments", call.get("parameters", {}))
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                yield self._call(str(call["name"]), text)
            except (AttributeError, KeyError, TypeError):
                yield self._call(None, item if isinstance(item, str) else json.dumps(item))

    def _refused(self) -> Iterator[AIMessageChunk]:
        """Yield a part that cannot be read as what it is; go on after it."""
        rest = self._rest()
        yield from self._unread(self._parser._body)
        self._restart("")
        yield from self.push(rest)

    def _unread(self, body: str) -> Iterator[AIMessageChunk]:
        if self._field == CALLS:
            yield self._call(None, body)
        else:
            yield from text_chunk(body)

    def _call(self, name: str | None, arguments: str) -> AIMessageChunk:
        arguments = arguments if name is not None else unfit(arguments)
        part = tool_call_chunk(name=name, args=arguments, id=new_id(), index=self._calls)
        self._calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[part])


def _loaded(template: Mapping[str, Any]) -> Any:
    """Return a template as the parser takes it; here no part of an answer has to be there."""
    from transformers.utils.chat_parsing.response_templates import load_response_template

    try:
        loaded = load_response_template(dict(template))
    except _REFUSED as error:
        msg = (
            f"The base's response template cannot be used ({error}): mend or remove it in its "
            "tokenizer_config.json."
        )
        raise InvalidInput(msg) from error
    for field in loaded.fields.values():
        field.optional = True
    return loaded


def _joined(events: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Join neighbouring pieces of one part."""
    piece: dict[str, Any] | None = None
    for event in events:
        if piece and event["type"] == "region_chunk" and event["field"] == piece["field"]:
            piece["text"] += event["text"]
            continue
        if piece:
            yield piece
        piece = dict(event) if event["type"] == "region_chunk" else None
        if piece is None:
            yield event
    if piece:
        yield piece
