"""What experts are called as tools, and what is said of them."""

import hashlib
import re

from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What the APIs of tool-calling models take as a tool's name."""


def checked_tool_name(name: str) -> str:
    """Return a tool's name.

    Raises:
        InvalidInput: It is none.
    """
    if not NAME.fullmatch(name):
        msg = f"{name!r} is no name for a tool: use 1 to 64 of the characters a-z, A-Z, 0-9, _, -."
        raise InvalidInput(msg)
    return name


def tool_name(expert: str) -> str:
    """Make a tool's name of an expert's; what must be cut off is told apart by its hash."""
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", f"ask_{expert}")
    if len(name) <= 64:
        return name
    return f"{name[:55]}_{hashlib.sha256(expert.encode()).hexdigest()[:8]}"


def described(card: ExpertCard) -> str:
    """Say what an expert is for."""
    return f"{card.description.strip()} Understands: {', '.join(card.languages)}."
