"""The training loop: what is learned is the objective's, the adapter best on dev rows is kept.

Each step depends on the one before it and on the seed alone, so that a run which was killed and
goes on from its checkpoint gives the same weights, to the last bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from one4all_lc.base.quantized import stay_differentiable
from one4all_lc.errors import InvalidInput
from one4all_lc.training.batches import (
    Batch,
    Lesson,
    Step,
    answer_loss,
    collate,
    cut,
    pack,
    steps_of,
)
from one4all_lc.training.checkpoint import Standing, read_checkpoint, write_checkpoint
from one4all_lc.training.data import Example
from one4all_lc.training.precision import as_base, compute_as_base
from one4all_lc.training.progress import Watcher
from one4all_lc.training.recipe import Recipe

CHECKPOINT_STEPS = 20
DEV_ROWS, DEV_TOKENS = 64, 8192
"""Dev rows of a decoder that are measured during a training, at most."""

DEV_MEASUREMENTS = 12
"""How often, over the whole of it."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


class Objective(Protocol):
    """What a batch is, and what its loss is.

    Attributes:
        dev_rows: Dev rows that are measured during a training, at most.
        dev_tokens: Their tokens, at most.
        pads: Whether rows of one forward lie under one another.
    """

    dev_rows: int
    dev_tokens: int
    pads: bool

    def prepare(self, model: nn.Module, recipe: Recipe, device: torch.device) -> str:
        """Prepare a model; say what of the recipe is not done, if anything."""

    def lay(self, rows: Sequence[Any]) -> Batch:
        """Lay rows out for one forward; `labels` from 0 are learned."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss of what is learned."""


class Answers:
    """The objective of decoders: each token of an answer, from what stands before it."""

    dev_rows, dev_tokens = DEV_ROWS, DEV_TOKENS

    def __init__(self) -> None:
        self.pads = True

    def prepare(self, model: nn.Module, recipe: Recipe, device: torch.device) -> str:
        """Have the adapter compute in the base's type, and find out whether rows can be packed."""
        compute_as_base(model, device)
        self.pads = not (recipe.packing and keeps_apart(model, device))
        lost = recipe.packing and self.pads
        return "rows are not packed: the base does not keep them apart" * lost

    def lay(self, rows: Sequence[Example]) -> Batch:
        """Lay rows under one another, or one after another."""
        return collate(rows) if self.pads else pack(rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross entropy of the answers' tokens."""
        return answer_loss(model, batch)


class Training:
    """One adapter, learning.

    Args:
        model: What the objective takes, a PEFT model for example; its trainable parameters are
            learned, whatever trained it before.
        examples: Training rows.
        dev: Rows to measure on meanwhile; without any, the last step's adapter is the result.
        recipe: How; nothing in it may be open (`Recipe.for_data`).
        checkpoint: The file that the training goes on from, if it is there.
        watcher: Is told of every step.
        objective: What is learned; by default answers.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Lesson],
        dev: Sequence[Lesson],
        recipe: Recipe,
        checkpoint: Path,
        watcher: Watcher,
        objective: Objective | None = None,
    ) -> None:
        self._model, self._recipe = model, recipe
        self._objective: Objective = objective or Answers()
        self._examples, self._dev = examples, dev_batches(dev, recipe, self._objective)
        self._checkpoint, self._watcher = checkpoint, watcher
        named = ((name, item) for name, item in model.named_parameters() if item.requires_grad)
        self._learned = dict(named)
        self._best: dict[str, Tensor] = {}
        self._standing = Standing()
        self._steps = recipe.steps or 0
        parameters = list(self._learned.values())
        self._optimizer = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate or 0.0, weight_decay=0.0, fused=True
        )

    def run(self) -> Standing:
        """Learn, from where the checkpoint stands to the end, and leave the best adapter loaded.

        Raises:
            InvalidInput: The loss is no number any more.
        """
        stay_differentiable(self._model)
        self._resume()
        lost = self._objective.prepare(self._model, self._recipe, self._device)
        if lost:
            self._watcher.note(lost)
        self._watcher.begin(self._standing.step, self._steps)
        for step in islice(steps_of(self._examples, self._recipe), self._standing.step, None):
            if self._done:
                break
            self._take(step)
        if self._stopped:
            self._watcher.note(
                f"ended after step {self._standing.step}: the loss on dev rows was lowest after "
                f"step {self._standing.best_step}"
            )
        self._restore(self._best)
        return self._standing

    @property
    def _stopped(self) -> bool:
        """Whether the dev rows have seen nothing better for too long."""
        patience = self._recipe.patience
        return 0 < patience <= self._standing.stale

    @property
    def _done(self) -> bool:
        return self._stopped or self._standing.step >= self._steps

    def _take(self, step: Step) -> None:
        began, standing = time.perf_counter(), self._standing
        loss = self._learn(step)
        standing.step += 1
        standing.losses.append(loss)
        standing.tokens += step.tokens
        standing.padding += step.padding if self._objective.pads else 0
        self._watcher.stepped(standing.step, loss)
        last = standing.step >= self._steps
        every = max(1, self._steps // DEV_MEASUREMENTS)
        if self._dev and (last or standing.step % every == 0):
            self._compare()
        standing.seconds += time.perf_counter() - began
        if standing.step % CHECKPOINT_STEPS == 0 or self._done:
            self._save()

    def _learn(self, step: Step) -> float:
        """Do one optimizer step; return its mean loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        total = torch.zeros((), device=self._device)
        for rows in step.micro:
            loss = self._objective.loss(self._model, self._placed(rows)) / step.learned
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        mean = float(total)
        if not math.isfinite(mean):
            msg = (
                f"The loss is {mean} at step {self._standing.step + 1}: train anew with a learning "
                f"rate under {self._recipe.learning_rate}."
            )
            raise InvalidInput(msg)
        nn.utils.clip_grad_norm_(self._learned.values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return mean

    def _learning_rate(self) -> float:
        """Return the step's: a short warm-up, then half a cosine."""
        step, warm = self._standing.step, max(1, self._steps // 30)
        peak = self._recipe.learning_rate or 0.0
        if step < warm:
            return peak * (step + 1) / (warm + 1)
        return peak * (1 + math.cos(math.pi * (step - warm) / max(1, self._steps - warm))) / 2

    def _compare(self) -> None:
        """Measure on the dev rows; keep the adapter if it is the best so far."""
        standing = self._standing
        loss = dev_loss(self._model, self._dev, self._device, self._objective.loss)
        best = standing.best_loss
        standing.dev_losses.append((standing.step, loss))
        standing.stale += 1
        if loss < best:
            standing.best_step, standing.stale = standing.step, 0
            self._best = {name: item.detach().clone() for name, item in self._learned.items()}

    @property
    def _device(self) -> torch.device:
        return next(iter(self._learned.values())).device

    def _placed(self, rows: Sequence[Lesson]) -> Batch:
        return {name: item.to(self._device) for name, item in self._objective.lay(rows).items()}

    def _save(self) -> None:
        tensors = {f"learned.{name}": item.detach() for name, item in self._learned.items()}
        tensors |= {f"best.{name}": item for name, item in self._best.items()}
        for name, item in self._learned.items():
            state = self._optimizer.state[item]
            tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
        write_checkpoint(self._checkpoint, tensors, self._standing)

    def _resume(self) -> None:
        read = read_checkpoint(self._checkpoint)
        if read is None:
            return
        tensors, self._standing = read
        self._restore({name: tensors[f"learned.{name}"] for name in self._learned})
        for name, item in self._learned.items():
            self._optimizer.state[item] = {
                moment: tensors[f"{moment}.{name}"].to(item.device) for moment in MOMENTS
            }
        self._best = {
            name.removeprefix("best."): item
            for name, item in tensors.items()
            if name.startswith("best.")
        }

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._learned[name].copy_(tensor)


def dev_batches(dev: Sequence[Lesson], recipe: Recipe, objective: Objective) -> list[Batch]:
    """Draw the dev rows that are measured during a training, and lay them out."""
    if not dev:
        return []
    drawn: list[Lesson] = []
    room = objective.dev_tokens
    for example in Random(recipe.seed).sample(dev, min(objective.dev_rows, len(dev))):
        room -= len(example)
        if room >= 0 or not drawn:
            drawn.append(example)
    parts = cut(sorted(drawn, key=len), recipe.micro_tokens)
    return [objective.lay(part) for part in parts]


def dev_loss(
    model: nn.Module,
    batches: Sequence[Batch],
    device: torch.device,
    loss: Callable[[nn.Module, Batch], Tensor] = answer_loss,
) -> float:
    """Return the mean loss of what is learned: by default the answers' tokens.

    The model must be one that `stay_differentiable` has prepared: in eval mode bitsandbytes would
    pack its layers for inference at this very forward, and no gradient would pass them again.
    """
    total, learned = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            placed = {name: item.to(device) for name, item in batch.items()}
            total += float(loss(model, placed))
            learned += int((batch["labels"] >= 0).sum())
    return total / max(1, learned)


def keeps_apart(model: nn.Module, device: torch.device) -> bool:
    """Whether rows that lie one after another cannot see one another in a base.

    Another first row must not change the second row's logits by a single bit.
    """
    rows = [Example((7, 8, 9, 10), (11, 12)), Example((17, 18, 19, 20), (21, 22))]
    second = Example((27, 28, 29, 30), (31, 32))
    logits = []
    with torch.no_grad(), as_base(model):
        for first in rows:
            batch = {name: item.to(device) for name, item in pack([first, second]).items()}
            del batch["labels"]
            logits.append(model(**batch, use_cache=False).logits[0, len(first) :])
    return bool(torch.equal(*logits))
