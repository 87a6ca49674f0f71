"""A training in a process of its own, killed again and again.

    python -m tests.killed BASE DATA FOLDER STEP...

Trains `FOLDER/whole/shout` undisturbed; then `FOLDER/cut/shout`, each time in a new process that is
killed when it says that it has done STEP steps, and that goes on from there; the last one ends by
itself. Everything is imported once, before the processes are forked.
"""

import os
import signal
import sys
from pathlib import Path

from one4all_lc.training import proving, qlora, trainer
from one4all_lc.training.progress import ProgressBar
from one4all_lc.training.recipe import About, Recipe

STEPS = 24


def train(folder: Path, base: str, data: str, *, resume: bool) -> None:
    about = About(description="Answers in capitals.", system_prompt="Shout.")
    recipe = Recipe(steps=STEPS, batch_tokens=240, learning_rate=1e-2, patience=0)
    qlora.train_expert(folder, [data], about=about, recipe=recipe, base=base, resume=resume)


def watched(folder: Path, base: str, data: str, kill_at: int | None) -> int:
    """Train in a child; return the signal that ended it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        write = os.fdopen(theirs, "w", buffering=1)
        ProgressBar.stepped = lambda self, step, loss: print(step, file=write)
        code = 1
        try:
            train(folder, base, data, resume=True)
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours) as lines:
        for line in lines:
            if kill_at is not None and int(line) >= kill_at:
                os.kill(child, signal.SIGKILL)
                break
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    return -os.WTERMSIG(status)


def main() -> None:
    base, data, folder, *steps = sys.argv[1:]
    trainer.CHECKPOINT_STEPS = 3
    proving.held_out_split = lambda _: None  # measuring is tested elsewhere, and takes longer
    whole, cut = (Path(folder) / name / "shout" for name in ("whole", "cut"))
    ended = [watched(whole, base, data, None)]
    ended += [watched(cut, base, data, int(step)) for step in steps]
    ended += [watched(cut, base, data, None)]
    print(ended)


if __name__ == "__main__":
    main()
