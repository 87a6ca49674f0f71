"""What is asked of the engine and what it gives back."""

import math
from dataclasses import dataclass, field
from typing import Literal

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert

DEFAULT_MAX_TOKENS = 256

FinishReason = Literal["stop", "length", "cancelled"]


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


@dataclass(frozen=True)
class Request:
    """One question for the engine.

    Attributes:
        prompt: Token ids, the chat template applied.
        experts: Which adapters answer, with weights; empty for the base alone.
        sampling: How tokens are chosen.
    """

    prompt: tuple[int, ...]
    experts: tuple[tuple[Expert, float], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Piece:
    """Some of an answer, as soon as it is certain.

    Attributes:
        text: New text.
        tokens: The token ids chosen since the last piece.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes:
        text: Without the stop text and the end token.
        tokens: Every token id chosen, the end token and those of the stop text included.
        finish_reason: `stop` (end token or stop text), `length`, or `cancelled`.
        prompt_tokens: Length of the prompt.
        first_token_seconds: From submission to the first token.
        seconds: From submission to the end.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    first_token_seconds: float
    seconds: float
