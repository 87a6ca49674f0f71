"""Which rows are learned in which step, and how they lie in a forward.

Everything is decided by the seed before the first step, so that a run which goes on after an
interruption sees what it would have seen.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from one4all_lc.training.data import Example
from one4all_lc.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a token that is not learned, as torch's cross entropy has it."""

POOL_STEPS = 32
"""Steps whose rows are sorted by length together."""

Batch = dict[str, "torch.Tensor"]


class Lesson(Protocol):
    """What can be learned from: a row, or a part of one, as token ids."""

    def __len__(self) -> int: ...

    @property
    def learned(self) -> int:
        """What is learned of it: tokens of the answer, or decisions."""


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step.

    Attributes:
        micro: The rows of each forward, one after another.
    """

    micro: tuple[tuple[Any, ...], ...]

    @property
    def learned(self) -> int:
        """What is learned of them: tokens of answers, or decisions."""
        return sum(example.learned for rows in self.micro for example in rows)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers, or of texts."""
        return sum(len(example) for rows in self.micro for example in rows)

    @property
    def padding(self) -> int:
        """Tokens that are computed for nothing, if rows lie under one another."""
        return sum(_padded(rows) for rows in self.micro) - self.tokens


def steps_of(examples: Sequence[Lesson], recipe: Recipe) -> Iterator[Step]:
    """Yield the steps of a training, without end.

    Pass after pass, each shuffled; inside a pool of some steps, rows of like length come together,
    which saves padding.

    Args:
        examples: The training rows.
        recipe: How many tokens a step and a forward have, and the seed.
    """
    draw = Random(recipe.seed)
    stream = _endless(examples, draw)
    while True:
        pool = sorted(_up_to(stream, POOL_STEPS * recipe.batch_tokens), key=len)
        steps = cut(pool, recipe.batch_tokens)
        draw.shuffle(steps)
        for rows in steps:
            yield Step(tuple(tuple(part) for part in cut(rows, recipe.micro_tokens)))


def _endless(examples: Sequence[Lesson], draw: Random) -> Iterator[Lesson]:
    while True:
        yield from draw.sample(examples, len(examples))


def _up_to(stream: Iterator[Lesson], tokens: int) -> Iterator[Lesson]:
    """Yield examples until they have so many tokens."""
    while tokens > 0:
        example = next(stream)
        tokens -= len(example)
        yield example


def cut(rows: Sequence[Lesson], tokens: int) -> list[list[Lesson]]:
    """Cut rows sorted by length into parts of so many tokens, padding included."""
    parts: list[list[Lesson]] = []
    for example in rows:
        if parts and _padded([*parts[-1], example]) <= tokens:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def _padded(rows: Sequence[Lesson]) -> int:
    return len(rows) * max(len(example) for example in rows)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay rows under one another, padded on the left: every answer ends at the last column.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each of shape (rows, length).
    """
    import torch

    length = max(len(example) for example in examples)
    gaps = [length - len(example) for example in examples]
    ids = [[0] * gap + [*row.prompt, *row.answer] for gap, row in zip(gaps, examples, strict=True)]
    labels = [
        [IGNORED] * (gap + len(row.prompt)) + [*row.answer]
        for gap, row in zip(gaps, examples, strict=True)
    ]
    mask = torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps])
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": torch.tensor(labels),
    }


def pack(examples: Sequence[Example]) -> Batch:
    """Lay rows one after another, each with positions from 0, by which attention tells them apart.

    Returns:
        `input_ids`, `position_ids` and `labels`, each of shape (1, length of all).
    """
    import torch

    flat = itertools.chain.from_iterable
    ids = flat((*row.prompt, *row.answer) for row in examples)
    labels = flat((*[IGNORED] * len(row.prompt), *row.answer) for row in examples)
    positions = flat(range(len(row)) for row in examples)
    return {
        "input_ids": torch.tensor([list(ids)]),
        "position_ids": torch.tensor([list(positions)]),
        "labels": torch.tensor([list(labels)]),
    }


def answer_loss(model: "torch.nn.Module", batch: Batch) -> "torch.Tensor":
    """Return the summed cross entropy of the answers' tokens.

    Logits are computed for what is learned only: the head of a small model is a fifth of its
    arithmetic.

    Args:
        model: The decoder.
        batch: What `collate` or `pack` returns, where the model is.
    """
    import torch

    from one4all_lc.training.precision import as_base

    given = dict(batch)
    labels = given.pop("labels")
    # The column before a label predicts it, in one row as in another.
    learned = (labels != IGNORED).any(0).nonzero().flatten()
    with as_base(model):
        logits = model(**given, use_cache=False, logits_to_keep=learned - 1).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels[:, learned].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
