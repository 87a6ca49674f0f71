"""How tokens are chosen: what a card sets as defaults, a call may change and the engine obeys."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from one4all_lc.errors import InvalidInput

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the names and meanings are those of transformers' `generate`.

    Attributes:
        max_tokens: Tokens that the answer may have.
        min_tokens: The answer does not end before that many, but for `stop`.
        temperature: 0 takes the likeliest token; above it, logits are divided by it and drawn.
        top_p: Draw from the smallest set of tokens whose probabilities reach this sum.
        top_k: Draw from this many likeliest tokens; 0 from all.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        seed: Makes draws repeatable; None draws anew each time.
        stop: The answer ends before the first of these texts.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, (kinds, holds, words) in _BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
                msg = f"{name} is {value!r}: it must be {words}."
                raise InvalidInput(msg)


_BOUNDS: Mapping[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "max_tokens": ((int,), lambda n: n >= 1, "a whole number from 1"),
    "min_tokens": ((int,), lambda n: n >= 0, "a whole number from 0"),
    "temperature": ((int, float), lambda x: 0 <= x < math.inf, "a number from 0"),
    "top_p": ((int, float), lambda x: 0 < x <= 1, "a number above 0, up to 1"),
    "top_k": ((int,), lambda n: n >= 0, "a whole number from 0"),
    "repetition_penalty": ((int, float), lambda x: 0 < x < math.inf, "a number above 0"),
    "seed": ((int, type(None)), lambda n: n is None or 0 <= n < 1 << 63, "a whole number from 0"),
    "stop": ((tuple,), lambda texts: all(_text(item) for item in texts), "texts, none empty"),
}


def _text(item: Any) -> bool:
    return isinstance(item, str) and bool(item)
