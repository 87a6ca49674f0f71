"""What a chain hands to the router: the question in it, and the turn before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from one4all_lc.errors import InvalidInput

RouterInput = str | PromptValue | Sequence[BaseMessage] | Mapping[str, Any]

ANSWER = 200
"""Characters of the last answer that are read: a long one would drown the questions."""


@dataclass(frozen=True)
class Asked:
    """A question and the turns before it.

    Attributes:
        question: The last human message.
        previous: The human messages before it, the latest first.
        answer: What was answered to the latest of them; empty if nothing was.
        expert: The expert that gave that answer, if the message says so.
    """

    question: str
    previous: tuple[str, ...] = ()
    answer: str = ""
    expert: str | None = None

    @property
    def last_turn(self) -> str:
        """The question with the whole turn before it, as one text."""
        turn = [*self.previous[:1], self.answer[:ANSWER].strip(), self.question]
        return "\n".join(part for part in turn if part)


def question_of(input_: RouterInput) -> str:
    """Find the question in what a chain hands over: text, messages, a prompt or a mapping.

    Raises:
        InvalidInput: There is none, or it is blank.
    """
    return asked_in(input_).question


def asked_in(input_: RouterInput) -> Asked:
    """Find the question, and the turns before it if there are messages.

    Raises:
        InvalidInput: There is no question, or it is blank.
    """
    if isinstance(input_, Mapping):
        found = [input_[key] for key in ("question", "input", "messages") if key in input_]
        if not found:
            msg = (
                f"The router got a mapping with {sorted(map(str, input_))}: "
                "give 'question', 'input' or 'messages'."
            )
            raise InvalidInput(msg)
        return asked_in(found[0])
    if isinstance(input_, PromptValue):
        asked = _conversation(input_.to_messages())
    elif isinstance(input_, BaseMessage):
        asked = Asked(str(input_.text))
    elif isinstance(input_, str):
        asked = Asked(input_)
    elif isinstance(input_, Sequence):
        asked = _conversation(input_)
    else:
        msg = f"The router got {type(input_).__name__}: give a question as text or messages."
        raise InvalidInput(msg)
    if not asked.question.strip():
        msg = "The question is empty: ask something."
        raise InvalidInput(msg)
    return asked


def _conversation(messages: Sequence[Any]) -> Asked:
    """Return the last human message; `("human", text)` and role dicts count as well."""
    try:
        converted = convert_to_messages(messages)
    except (ValueError, NotImplementedError, KeyError) as error:
        msg = f"The router got a list that is not messages ({str(error).splitlines()[0]})."
        raise InvalidInput(msg) from error
    turns = [index for index, message in enumerate(converted) if _is_human(message)]
    if not turns:
        msg = f"None of the {len(messages)} messages is a human one: there is no question to route."
        raise InvalidInput(msg)
    texts = [str(converted[index].text) for index in turns]
    previous = tuple(text for text in reversed(texts[:-1]) if text.strip())
    answers = converted[turns[-2] + 1 : turns[-1]] if len(turns) > 1 else []
    answer = next((item for item in reversed(answers) if isinstance(item, AIMessage)), None)
    if answer is None:
        return Asked(texts[-1], previous)
    expert = answer.response_metadata.get("expert")
    known = expert if isinstance(expert, str) else None
    return Asked(texts[-1], previous, str(answer.text), known)


def _is_human(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage) or getattr(message, "role", None) == "user"
