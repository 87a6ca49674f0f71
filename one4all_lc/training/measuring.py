"""Rows that were held out, and what base and experts make of them on the base as it is served."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import Adapter, Mixture
from one4all_lc.base.planning import Planner
from one4all_lc.base.threads import passing_threads
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert
from one4all_lc.sampling import Sampling
from one4all_lc.training.data import Example, Row, encode
from one4all_lc.training.intervals import Array

if TYPE_CHECKING:
    import torch

Advance = Callable[[], None]
"""Called for each row that is done."""

BATCH_ROWS = 8


@dataclass(frozen=True)
class Asked:
    """Who is asked, and how.

    Attributes:
        expert: Whose adapter answers; None is the base alone.
        system_prompt: What stands before every question.
        generation: Defaults of `Sampling`; answers are greedy whatever it says.
    """

    expert: Expert | None
    system_prompt: str
    generation: Mapping[str, Any]

    @classmethod
    def of(cls, expert: Expert) -> Self:
        """Return the expert as it is served."""
        return cls(expert, expert.card.system_prompt, expert.card.generation)

    def without_adapter(self) -> "Asked":
        """Return the base, prompted as the expert is: what differs then is the adapter's."""
        return replace(self, expert=None)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.generation.items()
        }
        settings["temperature"] = 0.0
        return Sampling(**settings)

    @property
    def experts(self) -> tuple[tuple[Expert, float], ...]:
        """What a request asks."""
        return ((self.expert, 1.0),) if self.expert else ()


BARE = Asked(None, "", {})
"""The base as it is without any expert."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that training never saw, drawn by a fixed seed.

    Attributes:
        split: `test`, or `dev` where there is no test.
        rows: Whose perplexity is measured.
        answered: How many of them, the first ones, are answered as well.
    """

    split: str
    rows: tuple[Row, ...]
    answered: int

    @property
    def to_answer(self) -> tuple[Row, ...]:
        """The rows that are answered."""
        return self.rows[: self.answered]

    @property
    def sha256(self) -> str:
        """What tells that two measurements had the same rows."""
        rows = [[row.question, row.answer] for row in self.rows]
        text = json.dumps([rows, len(self.to_answer)], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def drawn(cls, rows: Sequence[Row], scored: int, answered: int) -> Self:
        """Draw from the held-out rows.

        Raises:
            InvalidInput: No row was held out.
        """
        split = held_out_split(rows)
        if split is None:
            msg = "None of the rows has split 'test' or 'dev': there is nothing to measure with."
            raise InvalidInput(msg)
        of_split = [row for row in rows if row.split == split]
        drawn = Random(0).sample(of_split, min(scored, len(of_split)))
        return cls(split, tuple(drawn), answered)

    def that_fit(self, shared: SharedBase, asked: Iterable[Asked]) -> Self:
        """Leave out the rows that are longer than the base can read, whoever is asked.

        Raises:
            InvalidInput: None is left.
        """
        prompts = {item.system_prompt for item in asked}
        kept = tuple(row for row in self.rows if all(_fits(row, shared, text) for text in prompts))
        if not kept:
            msg = (
                f"All {len(self.rows)} held-out rows are longer than the "
                f"{shared.context_length:,} tokens of the base."
            )
            raise InvalidInput(msg)
        return replace(self, rows=kept)


def held_out_split(rows: Iterable[Row]) -> str | None:
    """Return the split to measure with: `test`, or else `dev`; None if neither has rows."""
    splits = {row.split for row in rows}
    return next((name for name in ("test", "dev") if name in splits), None)


def losses(
    shared: SharedBase, rows: Sequence[Row], asked: Asked, advance: Advance | None = None
) -> tuple[Array, Array]:
    """Return the cross entropy of each row's answer, in nats, and its number of tokens.

    Computed through the engine's own layers, as prompts are read.
    """
    examples = [_example(row, shared, asked.system_prompt) for row in rows]
    adapters: dict[str, Adapter] = {}
    if asked.expert is not None:
        adapters[asked.expert.identity] = Engine.of(shared).residency.load(asked.expert)
    mixture: Mixture = tuple((expert.identity, weight) for expert, weight in asked.experts)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    nats = np.zeros(len(examples))
    with passing_threads():
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            batch = [examples[index] for index in chosen]
            nats[chosen] = _batch_losses(shared, batch, mixture, adapters)
            for _ in chosen if advance else ():
                advance()  # type: ignore[misc]
    return nats, np.array([float(len(example.answer)) for example in examples])


def answers(
    shared: SharedBase,
    questions: Sequence[tuple[Asked, Sequence[Row]]],
    advance: Advance | None = None,
) -> list[list[str]]:
    """Have everybody answer their rows, all in the engine's one batch.

    Args:
        shared: The base.
        questions: Who is asked what.
        advance: Called for each answer.

    Returns:
        The answers of each, in the order of its rows.
    """
    engine = Engine.of(shared)

    def handle_of(row: Row, asked: Asked) -> Any:
        prompt = _example(row, shared, asked.system_prompt).prompt
        return engine.submit(Request(prompt, asked.experts, asked.sampling))

    found: list[list[str]] = []
    # As many wait as the engine lets wait; the others are submitted as those are done.
    handles = [[handle_of(row, asked) for row in rows] for asked, rows in questions]
    for of_one in handles:
        found.append([])
        for handle in of_one:
            found[-1].append(handle.result().text.strip())
            if advance:
                advance()
    return found


def _batch_losses(
    shared: SharedBase,
    batch: Sequence[Example],
    mixture: Mixture,
    adapters: Mapping[str, Adapter],
) -> Array:
    import torch

    linears = Linears.of(shared)
    length = max(len(example) for example in batch)
    plan = Planner.of(linears).plan([(length, mixture)] * len(batch), adapters)
    with torch.inference_mode(), linears.cell.using(plan):
        return _row_losses(shared, batch).double().cpu().numpy()


def _row_losses(shared: SharedBase, batch: Sequence[Example]) -> "torch.Tensor":
    """Return (rows,) summed cross entropies of the answers."""
    import torch

    from one4all_lc.training.batches import IGNORED, collate

    inputs = {name: tensor.to(shared.device) for name, tensor in collate(batch).items()}
    labels = inputs.pop("labels")
    # Answers end at the last column: logits are computed from where the longest begins.
    first = int((labels != IGNORED).any(0).nonzero()[0])
    logits = shared.model(**inputs, logits_to_keep=labels.shape[1] - first + 1).logits
    wanted = labels[:, first:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        wanted.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return each.view(wanted.shape).sum(1)


def _example(row: Row, shared: SharedBase, system_prompt: str) -> Example:
    (example,), _ = encode([row], shared.tokenizer, system_prompt, shared.context_length)
    return example


def _fits(row: Row, shared: SharedBase, system_prompt: str) -> bool:
    examples, _ = encode([row], shared.tokenizer, system_prompt, shared.context_length)
    return bool(examples)
