"""LangChain messages to the base's chat template; pure functions, no weights.

Training and inference both come through `render`, so an expert is asked as it was taught.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage, merge_message_runs

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"system": "system", "human": "user", "ai": "assistant", "chat": "user"}

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
    merged = merge_message_runs(list(messages))
    turns = [{"role": _role(message), "content": message.text} for message in merged]
    said = [turn for turn in turns if turn["role"] == "user"]
    if not said or not said[-1]["content"].strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    own = [{"role": "system", "content": system_prompt}] if system_prompt else []
    system = [*own, *(turn for turn in turns if turn["role"] == "system")]
    rest = [turn for turn in turns if turn["role"] != "system"]
    if system:
        content = "\n\n".join(turn["content"] for turn in system)
        return [{"role": "system", "content": content}, *rest]
    return rest


def render(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn]) -> list[int]:
    """Render a conversation with the chat template, up to where the answer begins.

    A tokenizer without a template gets the plainest one: each turn's text, blank lines between.

    Returns:
        Token ids of the prompt.
    """
    if not tokenizer.chat_template:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
        return list(tokenizer.encode(text))
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def _role(message: BaseMessage) -> str:
    if message.type not in ROLES:
        msg = f"A {type(message).__name__} has no place in a conversation with an expert yet."
        raise InvalidInput(msg)
    role = getattr(message, "role", None)  # ChatMessage names its role itself
    return str(role) if role in ROLES.values() else ROLES[message.type]
