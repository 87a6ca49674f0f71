"""transformers' Trainer, told to learn answers only and to show where it is."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from one4all_lc.training.data import Example
from one4all_lc.training.recipe import Recipe

IGNORED = -100
"""The label of a token that is not learned, as torch's cross entropy has it."""

CHECKPOINT_STEPS = 50
POOL_STEPS = 32
REPORT_STEPS = 10


def answer_trainer(
    model: torch.nn.Module,
    examples: Sequence[Example],
    recipe: Recipe,
    steps: int,
    checkpoints: Path,
    bar: "ProgressBar",
) -> Trainer:
    """Return a trainer that learns the answers of `examples` in `steps` optimizer steps."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_rows,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 30),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        save_steps=CHECKPOINT_STEPS,
        save_total_limit=1,
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_tqdm=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = _AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=[
            features(example)
            for example in in_order(examples, steps, recipe.batch_rows, recipe.seed)
        ],
        data_collator=collate,
        callbacks=[bar],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where JSON goes
    return trainer


def in_order(examples: Sequence[Example], steps: int, batch_rows: int, seed: int) -> list[Example]:
    """Return the examples of every step, one after another.

    Pass after pass, each shuffled; inside a pool of some steps, rows of like length come together,
    which saves padding. The whole order is fixed by the seed before the first step, so a run that
    goes on after an interruption sees what it would have seen.
    """
    draw = Random(seed)
    stream: list[Example] = []
    while len(stream) < steps * batch_rows:
        stream += draw.sample(examples, len(examples))
    ordered: list[Example] = []
    for start in range(0, steps * batch_rows, POOL_STEPS * batch_rows):
        end = min(start + POOL_STEPS * batch_rows, steps * batch_rows)
        pool = sorted(stream[start:end], key=len)
        batches = [pool[i : i + batch_rows] for i in range(0, len(pool), batch_rows)]
        draw.shuffle(batches)
        ordered += [example for batch in batches for example in batch]
    return ordered


def collate(features: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the left, so that every answer ends at the last column.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each of shape (rows, length).
    """
    length = max(len(feature["input_ids"]) for feature in features)

    def padded(name: str, filler: int) -> torch.Tensor:
        rows = [[filler] * (length - len(item[name])) + item[name] for item in features]
        return torch.tensor(rows)

    mask = torch.tensor(
        [[0] * (length - n) + [1] * n for n in (len(item["input_ids"]) for item in features)]
    )
    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": padded("labels", IGNORED),
    }


def features(example: Example) -> dict[str, list[int]]:
    """Return what `collate` takes: `input_ids` and `labels`, only the answer's labels learned."""
    return {
        "input_ids": [*example.prompt, *example.answer],
        "labels": [IGNORED] * len(example.prompt) + list(example.answer),
    }


def answer_loss(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the summed cross entropy of the answers' tokens.

    Logits are computed for the columns that hold answers only: the head of a small model is a
    fifth of its arithmetic.

    Args:
        model: The decoder.
        inputs: What `collate` returns.
    """
    given = dict(inputs)
    labels = given.pop("labels")
    first = int((labels != IGNORED).any(0).nonzero()[0])
    logits = model(**given, logits_to_keep=labels.shape[1] - first + 1).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, first:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


class _AnswerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that learns the answers and not the questions."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the mean cross entropy of the answers' tokens."""
        tokens = num_items_in_batch or (inputs["labels"] != IGNORED).sum()
        return answer_loss(model, inputs) / tokens


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Steps, loss and time left on standard error; a line now and then where no one watches.

    A context: whatever ends the training, the terminal is given back as it was.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, loss="?")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show how many steps there are, and how many a resumed run has behind it."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Show the step and its loss."""
        if "loss" not in logs:
            return
        loss = f"{logs['loss']:.3f}"
        self._bar.update(self._task, completed=state.global_step, loss=loss)
        if not self._console.is_terminal and state.global_step % REPORT_STEPS == 0:
            self._console.print(
                f"training: step {state.global_step}/{state.max_steps}, loss {loss}"
            )
