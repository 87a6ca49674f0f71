"""Trainers of other libraries, built on transformers' Trainer, watched as our own loop is."""

import math
from typing import TYPE_CHECKING, Any

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from one4all_lc.training.progress import Watcher


def silent_arguments(folder: str, steps: int) -> dict[str, Any]:
    """Return the arguments of a trainer that says and keeps nothing by itself."""
    import torch

    return {
        "output_dir": folder,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def run(trainer: Any, steps: int, learning_rate: float, watcher: "Watcher") -> list[float]:
    """Train; return the losses, step by step.

    Raises:
        InvalidInput: The loss is no number any more.
    """
    from transformers import PrinterCallback, TrainerCallback

    class Told(TrainerCallback):  # type: ignore[misc]
        """Tells the watcher."""

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs:
                watcher.stepped(state.global_step, logs["loss"])

    trainer.remove_callback(PrinterCallback)  # it prints where JSON goes
    trainer.add_callback(Told())
    watcher.begin(0, steps)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        msg = f"The loss became {losses[-1]}: try a learning rate under {learning_rate}."
        raise InvalidInput(msg)
    return losses
