"""Tools in a conversation: how they are shown to the base, and how a call is enforced.

A chat template that knows tools renders them itself. For one that does not, tools stand in the
system turn and a call is written as the largest families of open models write it:

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>

Pure functions, no weights.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import ToolCall
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs

from one4all_lc.engine.grammar import Grammar, json_rule
from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<tool_call>", "</tool_call>"

CALLS = "tool_calls"
"""What response templates call the part of an answer that calls tools."""

Tool = Mapping[str, Any]
"""A tool as OpenAI's API writes it."""

# Each tag by itself: tokenizers that have a token for it want that one.
_CALL = f'"{OPEN}" "\\n" call "\\n" "{CLOSE}"'

_SHOWN = """\
You may call functions. Their signatures are these:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


def knows_tools(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer renders tools itself, and its calls can be read again."""
    reads = CALLS in (getattr(tokenizer, "response_template", None) or {}).get("fields", {})
    return "tools" in str(tokenizer.chat_template or "") and (reads or _writes_calls(tokenizer))


def _writes_calls(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's chat template writes calls as they are written here."""
    template = str(tokenizer.chat_template or "")
    return OPEN in template and "<function=" not in template  # Qwen3-Coder's are no JSON


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
        return Grammar.lark(f"start: {_CALL} | form\ncall: {rule}\n{form}\n")
    if must:
        return Grammar.lark(f"start: {_CALL}\ncall: {rule}\n")
    # Any text, until a call begins: what follows then is one of the tools'.
    start = "(begun call ending)* TEXT" if many else "TEXT | begun call ending REST"
    rest = "" if many else f"REST: /(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/\n"
    return Grammar.lark(
        f"start: {start}\n{rest}"
        f'begun[lazy]: TEXT "{OPEN}"\n'
        f'ending: "\\n" "{CLOSE}"\n'
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
