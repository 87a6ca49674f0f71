"""Tools in a conversation: how they are shown to the base, enforced, and read from its answers.

A chat template that knows tools renders them itself. For one that does not, tools stand in the
system turn and a call is written as the largest families of open models write it:

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>

Pure functions, no weights.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCall
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs

from one4all_lc.engine.grammar import Grammar, json_rule
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<tool_call>", "</tool_call>"

Tool = Mapping[str, Any]
"""A tool as OpenAI's API writes it."""

_SHOWN = """\
You may call functions. Their signatures are these:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""

_HEAD = re.compile(r'\s*\{"name": *("(?:[^"\\]|\\.)*"), *"arguments": *')


def knows_tools(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's chat template renders tools, with calls as they are read here."""
    template = str(tokenizer.chat_template or "")
    return "tools" in template and OPEN in template


def described(tools: Sequence[Tool]) -> str:
    """Return what a base reads of tools whose chat template knows none."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return _SHOWN.format(tools="\n".join(lines))


def written(calls: Sequence[ToolCall]) -> str:
    """Return calls as the base writes them."""
    bodies = [
        json.dumps({"name": call["name"], "arguments": call["args"]}, ensure_ascii=False)
        for call in calls
    ]
    return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)


def chosen(tools: Sequence[Any], choice: Any) -> tuple[list[Tool], bool]:
    """Return the tools that may be called, and whether one must be.

    Args:
        tools: Whatever LangChain takes as a tool.
        choice: `auto`, `none`, `any` or `required`, a tool's name, or OpenAI's form of it.

    Raises:
        InvalidInput: The choice names no tool.
    """
    known: list[Tool] = [convert_to_openai_tool(tool) for tool in tools]
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name", choice.get("type"))
    if choice in (None, False, "auto"):
        return known, False
    if choice == "none":
        return [], False
    if choice in (True, "any", "required"):
        return known, True
    named = [tool for tool in known if tool["function"]["name"] == choice]
    if not named:
        names = ", ".join(tool["function"]["name"] for tool in known) or "none"
        msg = f"tool_choice is {choice!r}: use 'auto', 'none', 'any' or a tool's name ({names})."
        raise InvalidInput(msg)
    return named, True


def calling(
    tools: Sequence[Tool],
    *,
    must: bool,
    many: bool = True,
    schema: Mapping[str, Any] | None = None,
) -> Grammar:
    """Return the form of an answer that may, or must, call tools.

    Args:
        tools: Those that may be called.
        must: Whether the answer is one call alone.
        many: Whether an answer that may call may do so several times.
        schema: Of an answer that calls none; None for plain text.
    """
    schemas = [_call_schema(tool["function"]) for tool in tools]
    rule = json_rule(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
    if schema is not None:
        form = f"form: {json_rule(schema)}"
        return Grammar.lark(f'start: "{OPEN}\\n" call "\\n{CLOSE}" | form\ncall: {rule}\n{form}\n')
    if must:
        return Grammar.lark(f'start: "{OPEN}\\n" call "\\n{CLOSE}"\ncall: {rule}\n')
    # Any text, until a call begins: what follows then is one of the tools'.
    start = "(begun call ending)* TEXT" if many else "TEXT | begun call ending REST"
    rest = "" if many else f"REST: /(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/\n"
    return Grammar.lark(
        f"start: {start}\n{rest}"
        f'begun[lazy]: TEXT "{OPEN}"\n'
        f'ending: "\\n{CLOSE}"\n'
        f'call: "\\n" body\nbody: {rule}\nTEXT: /(.|\\n)*/\n',
        after=OPEN,
    )


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object", "properties": {}}
    # What is referred to would lie elsewhere in the schema of a call.
    arguments = dereference_refs(dict(arguments))
    arguments.pop("$defs", None)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


@dataclass
class CallReader:
    """Reads tool calls out of an answer while it is written.

    Text comes out as it comes in, but for what may be the beginning of a call. Of a call the name
    comes out first, then its arguments as they are written.
    """

    _text: str = ""
    _calls: int = 0
    _state: str = "text"
    _gap: str = ""
    _args: str = ""
    _said: bool = False
    _id: str = field(default_factory=lambda: _new_id())

    def push(self, text: str) -> Iterator[AIMessageChunk]:
        """Add text; yield what has become certain."""
        self._text += text
        while True:
            before = (self._state, self._text)
            yield from getattr(self, f"_{self._state}_read")()
            if (self._state, self._text) == before:
                return

    def finish(self) -> Iterator[AIMessageChunk]:
        """Yield what is left: a call that was not closed is an invalid one."""
        if self._state == "text":
            rest = self._text if self._calls == 0 else self._text.rstrip()
            yield from self._said_text(rest)
            if self._calls == 0 and self._gap:
                yield AIMessageChunk(content=self._gap)
        elif self._state == "head":
            yield self._chunk(None, OPEN + self._text, self._id)
        else:
            args = self._args + self._text
            yield self._chunk(None, self._text + _spoiling(args), None)
        self._text = ""

    def _said_text(self, text: str) -> Iterator[AIMessageChunk]:
        """Yield words, and the space before them; space around calls is not text."""
        said = text.strip()
        if not said:
            self._gap += text
            return
        before = self._gap + text[: text.index(said)]
        self._gap = text[text.index(said) + len(said) :]
        yield AIMessageChunk(content=(before if self._said or not self._calls else "") + said)
        self._said = True

    def _text_read(self) -> Iterator[AIMessageChunk]:
        before, opened, after = self._text.partition(OPEN)
        if opened:
            self._text, self._state = after, "head"
        else:
            held = _overlap(before, OPEN)
            before, self._text = before[: len(before) - held], before[len(before) - held :]
        yield from self._said_text(before)

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
        self._state, self._id = "text", _new_id()
        self._calls += 1

    def _whole_call(self, body: str) -> AIMessageChunk:
        """Return a call that is not written as usual."""
        try:
            call = json.loads(body)
            arguments = call.get("arguments", call.get("parameters", {}))
            return self._chunk(str(call["name"]), json.dumps(arguments), self._id)
        except (ValueError, AttributeError, KeyError, TypeError):
            return self._chunk(None, body.strip(), self._id)

    def _chunk(self, name: str | None, args: str, id_: str | None) -> AIMessageChunk:
        self._args = self._args + args if name is None else args
        part = tool_call_chunk(name=name, args=args, id=id_, index=self._calls)
        return AIMessageChunk(content="", tool_call_chunks=[part])


def read_answer(text: str) -> AIMessage:
    """Return an answer as a message, its tool calls read out of the text."""
    reader = CallReader()
    message = AIMessageChunk(content="")
    for chunk in (*reader.push(text), *reader.finish()):
        message = message + chunk
    return AIMessage(
        content=message.content,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
    )


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


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
