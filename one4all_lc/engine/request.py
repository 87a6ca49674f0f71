"""What is asked of the engine and what it gives back."""

from dataclasses import dataclass, field
from typing import Literal

from one4all_lc.engine.grammar import Grammar
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert
from one4all_lc.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One question for the engine.

    Attributes:
        prompt: Token ids, the chat template applied.
        experts: Which adapters answer, with weights; empty for the base alone.
        sampling: How tokens are chosen.
        timeout: Seconds from submission within which the answer must be whole; None sets no limit.
        grammar: The form that the answer must have. To become whole it may take some tokens more
            than `sampling.max_tokens`.
        special_tokens: Whether the tokenizer's special tokens stand in the text, for who reads by
            them.

    Raises:
        InvalidInput: The timeout is not a number above 0.
    """

    prompt: tuple[int, ...]
    experts: tuple[tuple[Expert, float], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    timeout: float | None = None
    grammar: Grammar | None = None
    special_tokens: bool = False

    def __post_init__(self) -> None:
        timeout = self.timeout
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            msg = f"timeout is {timeout!r}: it must be a number of seconds above 0, or None."
            raise InvalidInput(msg)

    @property
    def mixture(self) -> tuple[tuple[str, float], ...]:
        """The adapters by identity, with weights."""
        return tuple((expert.identity, weight) for expert, weight in self.experts)


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
        cached_tokens: How many of them were not computed again.
        first_token_seconds: From submission to the first token.
        seconds: From submission to the end.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    first_token_seconds: float
    seconds: float
