"""A training, as one watches it: on standard error, where no JSON goes."""

import sys
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

REPORT_STEPS = 10


class Watcher(Protocol):
    """What a training tells of itself."""

    def begin(self, step: int, steps: int) -> None:
        """Training begins, with so many steps behind it."""

    def stepped(self, step: int, loss: float) -> None:
        """A step is done."""

    def note(self, text: str) -> None:
        """Something happened."""


class ProgressBar:
    """Steps, loss and time left; a line now and then where no one watches.

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
        self._steps = 0
        self._task = self._bar.add_task("training", total=None, loss="?")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, step: int, steps: int) -> None:
        """Show how many steps there are, and how many a resumed run has behind it."""
        self._steps = steps
        self._bar.update(self._task, total=steps, completed=step)

    def stepped(self, step: int, loss: float) -> None:
        """Show the step and its loss."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}")
        if not self._console.is_terminal and step % REPORT_STEPS == 0:
            self.note(f"step {step}/{self._steps}, loss {loss:.3f}")

    def note(self, text: str) -> None:
        """Write a line."""
        self._console.print(f"training: {text}", markup=False, highlight=False, soft_wrap=True)
