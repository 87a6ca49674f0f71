"""How tokens are chosen: what a card sets as defaults, a call may change and the engine obeys."""

import math
from dataclasses import dataclass

from one4all_lc.errors import InvalidInput

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the names and meanings are those of transformers' `generate`.

    Attributes:
        max_tokens: Tokens that the answer may have.
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

    def __post_init__(self) -> None:
        bounds = {
            "max_tokens": (self.max_tokens >= 1, "from 1"),
            "temperature": (0 <= self.temperature < math.inf, "from 0"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1"),
            "top_k": (self.top_k >= 0, "from 0"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "stop": (all(self.stop), "without empty texts"),
        }
        for name, (holds, words) in bounds.items():
            if not holds:
                msg = f"{name} is {getattr(self, name)!r}: it must be {words}."
                raise InvalidInput(msg)
