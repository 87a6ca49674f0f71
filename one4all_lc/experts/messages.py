"""LangChain messages to the base's chat template; pure functions, no weights.

Training and inference both come through `render`, so an expert is asked as it was taught.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"system": "system", "human": "user", "ai": "assistant"}

Turn = dict[str, str]
"""One turn as chat templates take it: `{"role": ..., "content": ...}`."""


def to_turns(messages: Sequence[BaseMessage], system_prompt: str = "") -> list[Turn]:
    """Turn LangChain messages into what chat templates accept.

    Neighbours of one role are merged, since many templates insist on alternation. The caller's
    system message comes after the expert's own prompt, in one system turn.

    Args:
        messages: The conversation, oldest first.
        system_prompt: The expert's own, from its card.

    Raises:
        InvalidInput: There is nothing to answer, or a message is of a kind that has no turn.
    """
    turns = [{"role": role_of(message), "content": _text(message)} for message in messages]
    said = [turn for turn in turns if turn["role"] == "user"]
    if not said or not said[-1]["content"].strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    own = [{"role": "system", "content": system_prompt}] if system_prompt else []
    system = [*own, *(turn for turn in turns if turn["role"] == "system")]
    rest = [turn for turn in turns if turn["role"] != "system"]
    return [*_merged(system, "\n\n"), *_merged(rest, "\n")]


def role_of(message: BaseMessage) -> str:
    """Return the role that a message has in chat templates.

    Raises:
        InvalidInput: It has none: a tool's answer, for example.
    """
    role = getattr(message, "role", None)  # ChatMessage names its role itself
    role = ROLES.get(message.type) if role is None else role
    if role not in ("system", "user", "assistant"):
        msg = (
            f"A {type(message).__name__} has no place in a conversation with an expert: give "
            "system, human and AI messages."
        )
        raise InvalidInput(msg)
    return str(role)


def render(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn]) -> list[int]:
    """Render a conversation with the chat template, up to where the answer begins.

    A tokenizer without a template gets the plainest one: each turn's text, blank lines between.

    Returns:
        Token ids of the prompt.

    Raises:
        InvalidInput: The template refuses the conversation.
    """
    if not tokenizer.chat_template:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
        return list(tokenizer.encode(text, verbose=False))
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        msg = f"The base's chat template refuses the conversation: {error}."
        raise InvalidInput(msg) from error
    # Not verbose: that a prompt is too long is said by the engine, with what to do about it.
    return list(tokenizer.encode(str(text), add_special_tokens=False, verbose=False))


def _text(message: BaseMessage) -> str:
    """Return a message's text; what is not text would be lost in silence."""
    content = message.content if isinstance(message.content, list) else []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind != "text":
            msg = f"The message holds a block of type {kind!r}: these experts read text alone."
            raise InvalidInput(msg)
    return str(message.text)


def _merged(turns: Sequence[Turn], between: str) -> list[Turn]:
    """Join neighbours of one role."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}{between}{turn['content']}"}
        else:
            merged.append(turn)
    return merged
