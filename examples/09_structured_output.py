"""Answers as objects, and tool calls: always valid, however small the base is.

python examples/09_structured_output.py
"""

from typing import Literal

from langchain_core.tools import tool
from pydantic import BaseModel, Field

from one4all_lc import One4All

one = One4All.load(max_tokens=64)


class Opinion(BaseModel):
    """What somebody thinks of a device."""

    device: str
    verdict: Literal["good", "bad", "mixed"]
    reasons: list[str] = Field(min_length=1, max_length=3)


@tool
def remind(text: str, minutes: int) -> str:
    """Remind the user of something after some minutes."""
    return f"in {minutes} minutes: {text}"


review = "My Nokia 6610 is light, the battery lasts for days, but the screen is dim."
opinion = one.with_structured_output(Opinion).invoke(review)
print(repr(opinion))

caller = one.bind_tools([remind], tool_choice="remind")
call = caller.invoke("Remind me in 10 minutes to feed the cat.").tool_calls[0]
print(call["args"])
print(remind.invoke(call).content)
