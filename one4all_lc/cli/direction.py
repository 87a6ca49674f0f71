"""Right-to-left text in a terminal: isolated where it is mixed with left-to-right text.

Without isolation a bracket or a number beside a Persian word is drawn on its wrong side. Source:
Unicode Standard Annex 9, first strong isolate (U+2068) to pop directional isolate (U+2069).
"""

import unicodedata
from collections.abc import Callable

FIRST_STRONG, POP = "\u2068", "\u2069"


def isolated(text: str) -> str:
    """Return a text that keeps its own direction beside others; left-to-right text as it is."""
    if not any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        return text
    return "\n".join(f"{FIRST_STRONG}{line}{POP}" for line in text.split("\n"))


def shown(said: Callable[[Callable[[str], str]], str]) -> str:
    """Return what is said, its quotations isolated in lines that mix both directions.

    A line of one direction is left as it is: so a terminal begins it on its own side.

    Args:
        said: Composes the text with a function that is applied to every quotation.
    """
    plain, apart = said(str).split("\n"), said(isolated).split("\n")
    return "\n".join(
        other if _left_to_right(line) else line for line, other in zip(plain, apart, strict=True)
    )


def _left_to_right(line: str) -> bool:
    return any(unicodedata.bidirectional(character) == "L" for character in line)
