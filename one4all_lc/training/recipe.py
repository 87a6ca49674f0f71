"""What is decided before a training: how to train, and what the expert is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from one4all_lc.errors import InvalidInput

ALL_LINEAR = "all-linear"
"""Every linear layer but the output embeddings, as PEFT calls them."""

FEWEST_STEPS, MOST_STEPS = 20, 600

ENCODER_RANK, ENCODER_STEPS, ENCODER_PASSES = 16, 2000, 4
"""Of experts that decide: an encoder learns thousands of tokens in a second."""


@dataclass(frozen=True)
class Recipe:
    """How to train; what is None is decided by the size of the data, in `for_data`.

    Attributes:
        rank: Rows of every A; the file grows with it.
        alpha: The adapter's output is scaled by `alpha / rank`; by default twice the rank.
        learning_rate: Peak, after a short warm-up, falling as a half cosine.
        steps: Optimizer steps at most; the loss on dev rows may end the training before.
        batch_tokens: Tokens of prompts and answers in a step.
        micro_tokens: Tokens of one forward, padding included, which bounds the memory; a step is
            as many of them as its rows need.
        max_tokens: Rows with a longer prompt and answer are left out.
        targets: Names of the linear layers that are adapted; `all-linear` takes all.
        packing: Rows lie one after another instead of under one another, where the base keeps
            them apart; costs no padding, but attention over the whole length.
        patience: Measurements on dev rows without a better one, after which training ends; 0 goes
            on to the last step.
        quantization: Of the base while training: `nf4` or `none`.
        seed: Of initial weights and order.
    """

    rank: int | None = None
    alpha: int | None = None
    learning_rate: float | None = None
    steps: int | None = None
    batch_tokens: int = 1400
    micro_tokens: int = 2800
    max_tokens: int = 512
    targets: tuple[str, ...] = (ALL_LINEAR,)
    packing: bool = False
    patience: int = 4
    quantization: str = "nf4"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "learning_rate", "steps", "batch_tokens", "micro_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                msg = f"The recipe's {name} is {value}: give a number over 0."
                raise InvalidInput(msg)
        if self.quantization not in ("nf4", "none"):
            msg = f"Training on {self.quantization!r} is not possible: use 'nf4' or 'none'."
            raise InvalidInput(msg)

    def for_data(self, lengths: Sequence[int], *, decides: bool = False) -> Self:
        """Decide what is open.

        Few rows are soon known by heart: they get fewer parameters, smaller steps and more passes.

        Args:
            lengths: Tokens of each training row.
            decides: Whether it is for an expert that decides.
        """
        rows = len(lengths)
        passes, learning_rate = (ENCODER_PASSES, 1e-3) if decides else _passes(rows)
        rank = self.rank or (ENCODER_RANK if decides else _rank(rows))
        most = ENCODER_STEPS if decides else MOST_STEPS
        wanted = math.ceil(passes * sum(lengths) / self.batch_tokens)
        return dataclasses.replace(
            self,
            rank=rank,
            alpha=self.alpha or 2 * rank,
            learning_rate=self.learning_rate or learning_rate,
            steps=self.steps or max(FEWEST_STEPS, min(most, wanted)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values, as a card's `training` has it."""
        return dataclasses.asdict(self) | {"targets": list(self.targets)}

    @classmethod
    def from_training(cls, training: Mapping[str, Any]) -> Self:
        """Return the recipe that a card's `training` names.

        Args:
            training: The card's; those of version 0.1 hold its values among the other facts, and
                `batch_rows`, which is taken as that many rows of 85 tokens.
        """
        facts = training.get("recipe", training)
        known = {item.name for item in dataclasses.fields(cls)}
        values = {name: value for name, value in facts.items() if name in known}
        if "targets" in values:
            values["targets"] = tuple(values["targets"])
        if "batch_rows" in facts:
            values["batch_tokens"] = 85 * facts["batch_rows"]
        try:
            return cls(**values)
        except TypeError as error:
            msg = f"The card's recipe cannot be used ({error}): give one by options."
            raise InvalidInput(msg) from None


def _rank(rows: int) -> int:
    return 4 if rows < 200 else 8 if rows < 50_000 else 16


def _passes(rows: int) -> tuple[int, float]:
    """Return how often the rows are passed over, and the learning rate."""
    if rows < 1000:
        return 6, 5e-4
    return (4, 7e-4) if rows < 3000 else (3, 1e-3)


@dataclass(frozen=True)
class About:
    """What people and the router should know of an expert; None keeps what its card says."""

    title: str | None = None
    description: str | None = None
    languages: tuple[str, ...] | None = None
    system_prompt: str | None = None
    generation: Mapping[str, Any] | None = None
    license: str | None = None
    metric: str | None = None
    kind: str | None = None
