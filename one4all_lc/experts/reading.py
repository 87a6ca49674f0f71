"""Answers read while they are written: what is text in them, and what calls a tool."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from one4all_lc.experts.tool_calls import CLOSE, OPEN

_HEAD = re.compile(r'\s*\{"name": *("(?:[^"\\]|\\.)*"), *"arguments": *')


class Reader(Protocol):
    """Turns an answer's text into message chunks, as soon as they are certain."""

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Add text; yield what has become certain."""

    def finish(self, *, ended: bool = True) -> Iterator[AIMessageChunk]:
        """Yield what is left; `ended`: the base has ended the answer, it was not cut off."""


class TextReader:
    """Reads an answer that is text alone."""

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Yield the text."""
        yield from text_chunk(text)

    def finish(self, *, ended: bool = True) -> Iterator[AIMessageChunk]:
        """Yield nothing: nothing is held back."""
        yield from ()


def text_chunk(text: str) -> Iterator[AIMessageChunk]:
    """Yield a chunk of text, if there is any."""
    if text:
        yield AIMessageChunk(content=text)


@dataclass
class Spacing:
    """Keeps the space between words, and drops it around what is no text.

    Attributes:
        alone: Whether nothing but text was read so far: then its outer space is kept.
    """

    alone: bool = True
    _gap: str = ""
    _said: bool = False

    def push(self, text: str) -> str:
        """Add text; return its words, and the space before them."""
        words = text.strip()
        if not words:
            self._gap += text
            return ""
        at = text.index(words)
        before = self._gap + text[:at] if self._said or self.alone else ""
        self._gap, self._said = text[at + len(words) :], True
        return before + words

    def finish(self) -> str:
        """Return the space that is left."""
        return self._gap if self.alone else ""


def read(reader: Reader, text: str, *, ended: bool = True) -> AIMessage:
    """Return a whole answer as a message."""
    message = AIMessageChunk(content="")
    for chunk in (*reader.push(text), *reader.finish(ended=ended)):
        message = message + chunk
    return AIMessage(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
    )


def new_id() -> str:
    """Return an id for a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass
class CallReader:
    """Reads tool calls out of an answer, written as `tool_calls` has it.

    Text comes out as it comes in, but for what may be the beginning of a call. Of a call the name
    comes out first, then its arguments as they are written.
    """

    _text: str = ""
    _calls: int = 0
    _state: str = "text"
    _spacing: Spacing = field(default_factory=Spacing)
    _args: str = ""
    _id: str = field(default_factory=new_id)

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Add text; yield what has become certain."""
        self._text += text
        while True:
            before = (self._state, self._text)
            yield from getattr(self, f"_{self._state}_read")()
            if (self._state, self._text) == before:
                return

    def finish(self, *, ended: bool = True) -> Iterator[AIMessageChunk]:
        """Yield what is left: a call that was not closed is an invalid one."""
        if self._state == "text":
            yield from text_chunk(self._spacing.push(self._text) + self._spacing.finish())
        elif self._state == "head":
            yield self._chunk(None, OPEN + self._text, self._id)
        else:
            args = self._args + self._text
            yield self._chunk(None, self._text + _spoiling(args), None)
        self._text = ""

    def _text_read(self) -> Iterator[AIMessageChunk]:
        before, opened, after = self._text.partition(OPEN)
        if opened:
            self._text, self._state = after, "head"
        else:
            held = _overlap(before, OPEN)
            before, self._text = before[: len(before) - held], before[len(before) - held :]
        yield from text_chunk(self._spacing.push(before))

    def _head_read(self) -> Iterator[AIMessageChunk]:
        found = _HEAD.match(self._text)
        if found:
            self._text, self._state = self._text[found.end() :], "arguments"
            yield self._chunk(json.loads(found[1]), "", self._id)
        elif CLOSE in self._text:
            body, _, self._text = self._text.partition(CLOSE)
            yield from self._closed_call(body)

    def _arguments_read(self) -> Iterator[AIMessageChunk]:
        body, closed, after = _partitioned(self._args, self._text)
        if closed:
            self._text = after
            yield from self._closed_call(body)
            return
        # The brace that ends the call, and what may be its closing tag, are not arguments.
        sure = body[: len(body) - _overlap(body, CLOSE)].rstrip()
        sure = sure.removesuffix("}") if sure.endswith("}") else sure
        sure = sure.rstrip()
        if sure:
            self._text = self._text[len(sure) :]
            yield self._chunk(None, sure, None)

    def _closed_call(self, body: str) -> Iterator[AIMessageChunk]:
        """Yield the rest of a call."""
        if self._state == "arguments":
            rest = body.rstrip().removesuffix("}").rstrip()
            if rest:
                yield self._chunk(None, rest, None)
        else:
            yield self._whole_call(body)
        self._state, self._id = "text", new_id()
        self._calls += 1
        self._spacing.alone = False

    def _whole_call(self, body: str) -> AIMessageChunk:
        """Return a call that is not written as usual."""
        try:
            call = json.loads(body)
            arguments = call.get("arguments", call.get("parameters", {}))
            return self._chunk(str(call["name"]), json.dumps(arguments), self._id)
        except (ValueError, AttributeError, KeyError, TypeError):
            return self._chunk(None, unfit(body.strip()), self._id)

    def _chunk(self, name: str | None, args: str, id_: str | None) -> AIMessageChunk:
        self._args = self._args + args if name is None else args
        part = tool_call_chunk(name=name, args=args, id=id_, index=self._calls)
        return AIMessageChunk(content="", tool_call_chunks=[part])


def unfit(args: str) -> str:
    """Return the text of a call that is none, so that LangChain makes no call of it."""
    try:
        parsed = parse_partial_json(args)
    except ValueError:
        return args
    return args + _spoiling(args) if isinstance(parsed, dict) else args


def _spoiling(args: str) -> str:
    """Return what makes LangChain's lenient parser refuse arguments that were cut off."""
    return ('"' if _in_string(args) else "") + "}" * (args.count("{") + 1)


def _partitioned(before: str, text: str) -> tuple[str, str, str]:
    """Cut a text at the first closing tag that does not stand in a string."""
    at = text.find(CLOSE)
    while at >= 0 and _in_string(before + text[:at]):
        at = text.find(CLOSE, at + 1)
    if at < 0:
        return text, "", ""
    return text[:at], CLOSE, text[at + len(CLOSE) :]


def _in_string(arguments: str) -> bool:
    """Whether arguments end within a JSON string."""
    return re.sub(r"\\.", "", arguments).count('"') % 2 == 1


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of a text that begins a mark."""
    return next(
        (n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0
    )
