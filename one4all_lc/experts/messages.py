"""LangChain messages to the base's chat template; pure functions, no weights.

Training and inference both come through `render`, so an expert is asked as it was taught.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.tool_calls import Tool, described, knows_tools, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}

Turn = dict[str, Any]
"""One turn as chat templates take it: `{"role": ..., "content": ...}`."""

_UNSAID = (
    *("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"),
    *("thinking", "redacted_thinking", "reasoning"),
)
"""Blocks of an AI message that its tool calls say again, or that were never said aloud."""


def to_turns(
    messages: Sequence[BaseMessage],
    system_prompt: str = "",
    instruction: str = "",
    *,
    native_tools: bool = False,
) -> list[Turn]:
    """Turn LangChain messages into what chat templates accept.

    Neighbours of one role are merged, since many templates insist on alternation. The caller's
    system message comes after the expert's own prompt, in one system turn.

    Args:
        messages: The conversation, oldest first.
        system_prompt: The expert's own, from its card.
        instruction: What is said of tools or of the answer's form, after all other system turns.
        native_tools: Whether the template renders tool calls and their results itself.

    Raises:
        InvalidInput: There is nothing to answer, or a message is of a kind that has no turn.
    """
    turns = [_turn(message, native_tools=native_tools) for message in messages]
    said = [
        turn["content"]
        for turn, message in zip(turns, messages, strict=True)
        if turn["role"] == "user" and not isinstance(message, ToolMessage)
    ]
    if not said or not said[-1].strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    own = [{"role": "system", "content": text} for text in (system_prompt,) if text]
    last = [{"role": "system", "content": text} for text in (instruction,) if text]
    system = [*own, *(turn for turn in turns if turn["role"] == "system"), *last]
    rest = [turn for turn in turns if turn["role"] != "system"]
    return [*_merged(system, "\n\n"), *_merged(rest, "\n")]


def _turn(message: BaseMessage, *, native_tools: bool) -> Turn:
    role, text = role_of(message), _text(message)
    if isinstance(message, ToolMessage):
        text = f"Error: {text}" if message.status == "error" else text
        if native_tools:
            return {"role": "tool", "name": message.name or "", "content": text}
        return {"role": "user", "content": _response(text)}
    if isinstance(message, AIMessage) and message.tool_calls:
        if native_tools:
            calls = [
                {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
                for call in message.tool_calls
            ]
            thought = message.additional_kwargs.get("reasoning_content")
            said = {"reasoning_content": thought} if thought else {}
            return {"role": role, "content": text, "tool_calls": calls, **said}
        text = "\n".join(filter(None, [text, written(message.tool_calls)]))
    return {"role": role, "content": text}


def role_of(message: BaseMessage) -> str:
    """Return the role that a message has in chat templates.

    Raises:
        InvalidInput: It has none.
    """
    role = getattr(message, "role", None)  # ChatMessage names its role itself
    role = ROLES.get(message.type) if role is None else role
    if role not in ROLES.values():
        msg = (
            f"A {type(message).__name__} has no place in a conversation with an expert: give "
            "system, human, AI and tool messages."
        )
        raise InvalidInput(msg)
    return str(role)


def prompt_of(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[BaseMessage],
    system_prompt: str = "",
    *,
    tools: Sequence[Tool] = (),
    instruction: str = "",
    thinking: bool | None = None,
) -> list[int]:
    """Render a conversation with the tools that may be called in it.

    Args:
        tokenizer: The base's.
        messages: The conversation, oldest first.
        system_prompt: The expert's own, from its card.
        tools: What may be called.
        instruction: What is said of the answer's form.
        thinking: As `render` takes it.

    Raises:
        InvalidInput: See `to_turns` and `render`.
    """
    native = knows_tools(tokenizer)
    parts = [described(tools) if tools and not native else "", instruction]
    said = "\n\n".join(filter(None, parts))
    turns = to_turns(messages, system_prompt, said, native_tools=native)
    return render(tokenizer, turns, tools if native else (), thinking=thinking)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool | None = None,
) -> list[int]:
    """Render a conversation with the chat template, up to where the answer begins.

    A tokenizer without a template gets the plainest one: each turn's text, blank lines between.

    Args:
        tokenizer: The base's.
        turns: The conversation.
        tools: What the template shows of tools.
        thinking: Whether the base shall think before it answers, for templates that let one choose
            (Qwen3's `enable_thinking`); None leaves it to the template.

    Returns:
        Token ids of the prompt.

    Raises:
        InvalidInput: The template refuses the conversation.
    """
    if not tokenizer.chat_template:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
        return list(tokenizer.encode(text, verbose=False))
    from jinja2 import TemplateError

    chosen = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=True, **chosen
        )
    except TemplateError as error:
        msg = f"The base's chat template refuses the conversation: {error}."
        raise InvalidInput(msg) from error
    # Not verbose: that a prompt is too long is said by the engine, with what to do about it.
    return list(tokenizer.encode(str(text), add_special_tokens=False, verbose=False))


def _text(message: BaseMessage) -> str:
    """Return a message's text; what is not text would be lost in silence."""
    content = message.content if isinstance(message.content, list) else []
    said = [str(message.text)]
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if isinstance(block, dict) and kind == "tool_result" and message.type == "human":
            said.append(_response(_result_text(block)))
        elif kind != "text" and not (message.type == "ai" and kind in _UNSAID):
            msg = f"The message holds a block of type {kind!r}: these experts read text alone."
            raise InvalidInput(msg)
    return "\n".join(filter(None, said))


def _result_text(block: dict[str, Any]) -> str:
    """Return the text of a tool's result as Anthropic's API has it."""
    content = block.get("content", "")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(str(part.get("text", "")) for part in parts)


def _response(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


def _merged(turns: Sequence[Turn], between: str) -> list[Turn]:
    """Join neighbours of one role."""
    merged: list[Turn] = []
    for turn in turns:
        plain = merged and {*merged[-1], *turn} == {"role", "content"}
        if plain and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}{between}{turn['content']}"}
        else:
            merged.append(turn)
    return merged
