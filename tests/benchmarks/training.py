"""Training against the bare loop of transformers: tokens a second, and memory at the peak.

    python -m tests.benchmarks.training [--steps N] [--rounds N] [--json]

Both learn the same rows in the same batches with the same adapter on the same NF4 base, by the same
optimizer and schedule. The bare loop is transformers' Trainer with the model's own loss, labels of
the prompts ignored. Each has a base of its own, in one process for the speed, in one each for the
memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.harness import Bar, report, rounds
from tests.benchmarks.questions import QUESTIONS

SPEED, MEMORY = 0.95, 1.10
RECIPE = {"rank": 8, "batch_tokens": 1350, "learning_rate": 1e-3}
WORDS = (
    "the",
    "first",
    "camera",
    "of",
    "a",
    "phone",
    "has",
    "more",
    "light",
    "than",
    "its",
    "last",
)


def examples(tokenizer):
    """Rows of many lengths, as an expert's are: a question, and an answer of 5 to 60 words."""
    from one4all_lc.training.data import Row, encode

    rows = []
    for number in range(256):
        words = 5 + 7 * number % 56
        answer = " ".join(WORDS[(number + 5 * word) % len(WORDS)] for word in range(words))
        rows.append(Row(f"{number}: {QUESTIONS[number % len(QUESTIONS)]}", f"{answer}."))
    return encode(rows, tokenizer, "Answer in plain words.", 512)[0]


def prepared(steps):
    """Return a model with a new adapter, the rows and the recipe."""
    from one4all_lc.base.loading import SharedBase
    from one4all_lc.training.qlora import with_adapter
    from one4all_lc.training.recipe import Recipe

    shared = SharedBase.load(quantization="nf4", shared=False)
    rows = examples(shared.tokenizer)
    recipe = Recipe(steps=steps, **RECIPE).for_data([len(row) for row in rows])
    return with_adapter(shared, recipe), rows, recipe


class Quiet:
    """Watches and says nothing."""

    def begin(self, step, steps): ...

    def stepped(self, step, loss): ...

    def note(self, text): ...


def ours(steps):
    """Return a function that trains so many steps and returns how many tokens it learned from."""
    from one4all_lc.training.trainer import Training

    model, rows, recipe = prepared(steps)

    def run():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint.safetensors"
            return Training(model, rows, [], recipe, checkpoint, Quiet()).run().tokens

    return run


def bare(steps):
    """The same by transformers' Trainer."""
    from itertools import islice

    from transformers import PrinterCallback, Trainer, TrainingArguments

    from one4all_lc.base.quantized import stay_differentiable
    from one4all_lc.training.batches import collate, steps_of

    model, rows, recipe = prepared(steps)
    stay_differentiable(model)
    batches = list(islice(steps_of(rows, recipe), steps))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
    )

    def run():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[
                {"rows": [row for part in step.micro for row in part]} for step in batches
            ],
            data_collator=lambda items: collate(items[0]["rows"]),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return sum(step.tokens for step in batches)

    return run


SIDES = {"one4all": ours, "bare": bare}


def speed(run):
    """Return a case: tokens a second."""

    def measured():
        began = time.perf_counter()
        return run() / (time.perf_counter() - began)

    return measured


def peak(side, steps):
    """Return the peak of a process that only trains, in bytes, the base's loading left out."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--peak", side]
    done = subprocess.run(
        [*command, "--steps", str(steps)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(side, steps):
    from one4all_lc.training.memory import forget_peak, peak_bytes

    run = SIDES[side](steps)
    device = device_of_base()
    forget_peak(device)
    run()
    print(peak_bytes(device))


def device_of_base():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak, arguments.steps)
        return
    peaks = {side: peak(side, arguments.steps) for side in SIDES}
    cases = {side: speed(make(arguments.steps)) for side, make in SIDES.items()}
    for case in cases.values():
        case()  # what is compiled or allocated once
    figures = rounds(cases, arguments.rounds)
    bars = {
        "training_speed": Bar(figures.ratio("one4all", "bare"), SPEED),
        "training_memory": Bar(peaks["one4all"] / peaks["bare"], MEMORY, at_most=True),
    }
    report(
        figures,
        bars,
        arguments.json,
        unit="tokens/s",
        steps=arguments.steps,
        recipe=RECIPE,
        peak_bytes=peaks,
    )


if __name__ == "__main__":
    main()
