"""What is decided before a training: how to train, and what the expert is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        rank: Rows of every A; the file grows with it.
        alpha: The adapter's output is scaled by `alpha / rank`.
        learning_rate: Peak, after a short warm-up, falling as a half cosine.
        steps: Optimizer steps; None takes three passes over the rows, 400 steps at most.
        batch_rows: Rows a step.
        max_tokens: Rows with a longer prompt and answer are left out.
        seed: Of initial weights and order.
    """

    rank: int = 8
    alpha: int = 16
    learning_rate: float = 1e-3
    steps: int | None = None
    batch_rows: int = 16
    max_tokens: int = 512
    seed: int = 0


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
