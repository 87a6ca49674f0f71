"""Where the time of a step goes: products, our own kernels, and all between them.

python -m tests.benchmarks.steps [--steps 24] [--json]

Milliseconds of a step of 1, 8 and 32 rows that decode, 8 experts mixed; the parts are timed one by
one, which itself costs about a microsecond a call. What is left is transformers' Python, small
operations and the choice of tokens.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from one4all_lc.base.compiled.recording import Recording, Step, _fill
from tests.benchmarks.harness import prompts
from tests.benchmarks.ours import Ours, mixed

BATCHES = (1, 8, 32)
STEP = "whole step"


class Times:
    """Seconds by part, added up since the last `take`."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    def of(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """Return a function that is timed under the name that `name` finds from its arguments."""

        def timed(*args: Any, **settings: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                self._spent[name(*args)] += time.perf_counter() - begun

        return timed

    def take(self) -> dict[str, float]:
        """Return what was spent, and begin anew."""
        spent, self._spent = self._spent, defaultdict(float)
        return spent


def run_timed(recording: Recording, times: Times) -> Tensor:
    """Do what was recorded, and note how long each operation takes."""
    for step in recording.steps:
        times.of(step, lambda step=step: name_of(step))()
    return recording.result


def name_of(step: Step) -> str:
    """Return the name of a kernel of ours, or of torch's operation."""
    if not isinstance(step, functools.partial):
        return f"kernel {step.name}"
    inner = step.args[1] if step.func is _fill else step
    return str(inner.func)


def measure(ours: Ours, times: Times, rows: int, steps: int) -> dict[str, float]:
    """Return milliseconds of a step by part."""
    source, seen = prompts(ours.base.tokenizer), []
    step = ours.engine._step

    def counted() -> None:
        step()
        seen.append(times.take())

    ours.engine._step = times.of(counted, lambda *_: STEP)  # type: ignore[method-assign]
    batch = [next(source) for _ in range(rows)]
    ours.run(batch, mixed(rows), steps + 16)
    ours.engine._step = step  # type: ignore[method-assign]
    middle = seen[-steps - 2 : -2]  # everybody decodes: the prompts are read, nobody has left
    names = {name for spent in middle for name in spent}
    return {n: 1e3 * statistics.median(spent.get(n, 0.0) for spent in middle) for n in names}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    times = Times()
    Recording.run = lambda recording: run_timed(recording, times)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder))
        ours.run([next(prompts(ours.base.tokenizer))], [0], 4)
        spent = {rows: measure(ours, times, rows, arguments.steps) for rows in BATCHES}
    for found in spent.values():  # the step is counted in the step after it
        found["all else"] = found[STEP] - sum(v for name, v in found.items() if name != STEP)
    names = sorted(spent[32], key=lambda name: -spent[32][name])
    table = Table("ms a step", *(f"{rows} rows" for rows in BATCHES))
    for name in names:
        table.add_row(name, *(f"{spent[rows].get(name, 0):.2f}" for rows in BATCHES))
    Console(stderr=True).print(table)
    if arguments.json:
        print(json.dumps({rows: spent[rows] for rows in BATCHES}))


if __name__ == "__main__":
    main()
