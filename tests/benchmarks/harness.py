"""What benchmarks share: prompts, interleaved rounds, the report.

torch is imported where it is used: `peers` sets the number of threads before that.
"""

import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from one4all_lc.base.threads import passing_threads
from one4all_lc.reports.bar import Bar as Bar
from tests.benchmarks.contention import TOLERATED_CORES, watch
from tests.benchmarks.questions import QUESTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompts(tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[int, ...]]:
    """Yield prompts without end, chat template applied, all of one length and no two the same.

    A number at the front tells them apart, so that no engine finds one in its prefix cache; its
    digits are reversed, so that already the first ones differ.
    """
    for number, question in enumerate(itertools.cycle(QUESTIONS)):
        digits = f"{number:05d}"[::-1]
        messages = [
            {"role": "system", "content": f"Conversation {digits}. Answer in a few words."},
            {"role": "user", "content": question},
        ]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        yield tuple(encoded["input_ids"])


Case = Callable[[], float]
"""Runs once and returns its figure: a throughput, or seconds."""


@dataclass(frozen=True)
class Rounds:
    """The figures of cases that ran in turn: one for each case and round.

    Attributes:
        figures: By case, in the order of the rounds.
        disturbed: Cores that others used while a case ran, where they were too many.
    """

    figures: Mapping[str, Sequence[float]]
    disturbed: Mapping[str, Sequence[float]]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return median and spread by case."""
        return {
            name: {
                "median": round(statistics.median(values), 3),
                "least": round(min(values), 3),
                "most": round(max(values), 3),
            }
            for name, values in self.figures.items()
        }

    def ratio(self, over: str, under: str) -> float | None:
        """Return the median over rounds of each round's ratio; None unless both cases ran."""
        if over not in self.figures or under not in self.figures:
            return None
        pairs = zip(self.figures[over], self.figures[under], strict=True)
        return round(statistics.median(one / other for one, other in pairs), 3)


def together(names: Sequence[str], run: Callable[[], Sequence[float]]) -> dict[str, Case]:
    """Return cases whose figures one run gives: the first of them runs it."""
    kept: dict[str, float] = {}

    def first() -> float:
        kept.update(zip(names, run(), strict=True))
        return kept[names[0]]

    return {names[0]: first} | {name: lambda name=name: kept[name] for name in names[1:]}


class CaseMissing(Exception):
    """A case cannot run here; its figures are left out and the bars on them are null."""


def rounds(cases: Mapping[str, Case], count: int) -> Rounds:
    """Run every case in turn, `count` times over: what drifts, drifts for all of them alike."""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    disturbed: dict[str, list[float]] = {}
    console = Console(stderr=True)
    for number in range(count):
        for name in tuple(figures):
            others = watch()
            try:
                with passing_threads():  # what one case leaves behind would slow down the next
                    figures[name].append(cases[name]())
            except CaseMissing as reason:
                del figures[name]
                console.print(f"{name} is left out: {reason}", markup=False)
                continue
            words = f"round {number + 1} of {count}: {name} {figures[name][-1]:.3g}"
            if (cores := others() or 0.0) > TOLERATED_CORES:
                disturbed.setdefault(name, []).append(cores)
                words += f", DISTURBED: others used {cores} cores"
            console.print(words, markup=False)
    return Rounds(figures, disturbed)


def throughput(run: Callable[[], Sequence[int]], tokens: int) -> float:
    """Return generated tokens per second of a call that returns how many each row has.

    Raises:
        RuntimeError: A row has not exactly `tokens`.
    """
    started = time.perf_counter()
    counts = run()
    return rate(counts, tokens, time.perf_counter() - started)


def rate(counts: Sequence[int], tokens: int, seconds: float) -> float:
    """Return tokens per second.

    Raises:
        RuntimeError: A row has not exactly `tokens`: the figures could not be compared.
    """
    if set(counts) != {tokens}:
        msg = f"{tokens} tokens were asked of every row, they have {sorted(set(counts))}"
        raise RuntimeError(msg)
    return sum(counts) / seconds


def report(
    figures: Rounds, bars: Mapping[str, Bar], as_json: bool, *, unit: str, **facts: object
) -> None:
    """Print tables on standard error and, if asked, one JSON document on standard output.

    Args:
        figures: What was measured.
        bars: By key; they end the document.
        as_json: Whether the document is printed.
        unit: Of the figures.
        **facts: What else the document says, put first.
    """
    host, summary = machine(), figures.summary()
    console = Console(stderr=True)
    table = Table(unit, "median", "least", "most", title=f"{host['cores']} cores, {host['cpu']}")
    for name, values in summary.items():
        table.add_row(name, *(f"{value:.4g}" for value in values.values()))
    console.print(table)
    table = Table("bar", "value", "must be", "holds")
    for key, item in bars.items():
        value = "-" if item.value is None else f"{item.value:.3f}"
        words = {True: "yes", False: "NO", None: "not measured"}[item.holds]
        table.add_row(key, value, f"{'≤' if item.at_most else '≥'} {item.bar}", words)
    console.print(table)
    if figures.disturbed:
        console.print("Others used the machine: repeat this while it is idle.", style="bold red")
    if as_json:
        document = {"machine": host, **facts, "unit": unit, "figures": summary}
        document["disturbed_cores"] = figures.disturbed
        document["bars"] = {
            key: {"value": item.value, "bar": item.bar, "holds": item.holds}
            for key, item in bars.items()
        }
        print(json.dumps(document, indent=2))


def machine() -> dict[str, Any]:
    """Return what figures depend on: cores, processor, versions."""
    import torch
    import transformers

    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_model() -> str:
    """Return the processor's name; many virtual machines leave only its numbers."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.partition(":")[::2] for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name") or platform.machine()
    numbers = [facts.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"
