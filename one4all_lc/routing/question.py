"""What a chain hands to the router, and the question in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from one4all_lc.errors import InvalidInput

RouterInput = str | PromptValue | Sequence[BaseMessage] | Mapping[str, Any]


def question_of(input_: RouterInput) -> str:
    """Find the question in what a chain hands over: text, messages, a prompt or a mapping.

    Raises:
        InvalidInput: There is none, or it is blank.
    """
    text: object = input_
    if isinstance(input_, Mapping):
        found = [input_[key] for key in ("question", "input", "messages") if key in input_]
        if not found:
            msg = (
                f"The router got a mapping with {sorted(map(str, input_))}: "
                "give 'question', 'input' or 'messages'."
            )
            raise InvalidInput(msg)
        return question_of(found[0])
    if isinstance(input_, PromptValue):
        text = _last_human(input_.to_messages())
    elif isinstance(input_, BaseMessage):
        text = input_.text
    elif isinstance(input_, Sequence) and not isinstance(input_, str):
        text = _last_human(input_)
    if not isinstance(text, str):
        msg = f"The router got {type(input_).__name__}: give a question as text or messages."
        raise InvalidInput(msg)
    if not text.strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    return text


def _last_human(messages: Sequence[Any]) -> str:
    """Return the last human message's text; `("human", text)` and role dicts count as well."""
    try:
        converted = convert_to_messages(messages)
    except (ValueError, NotImplementedError, KeyError) as error:
        msg = f"The router got a list that is not messages ({str(error).splitlines()[0]})."
        raise InvalidInput(msg) from error
    for message in reversed(converted):
        if isinstance(message, HumanMessage) or getattr(message, "role", None) == "user":
            return str(message.text)
    msg = f"None of the {len(messages)} messages is a human one: there is no question to route."
    raise InvalidInput(msg)
