"""Where a training stands, on disk: one file that is whole at any moment."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass
class Standing:
    """How far a training has come.

    Attributes:
        step: Optimizer steps done.
        losses: Mean loss of the answers' tokens, by step.
        dev_losses: Steps done and the loss on dev rows then.
        best_step: Steps done when that was lowest.
        stale: Measurements since then.
        seconds: Time taken, interruptions aside.
        tokens: Tokens of prompts and answers that were learned from.
        padding: Tokens that were computed for nothing.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    dev_losses: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    tokens: int = 0
    padding: int = 0

    @property
    def best_loss(self) -> float:
        """The lowest loss on dev rows; infinite before the first."""
        return min((loss for _, loss in self.dev_losses), default=float("inf"))

    @property
    def final_loss(self) -> float:
        """Mean loss of the last ten steps."""
        last = self.losses[-10:]
        return sum(last) / len(last)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote."""
        values = json.loads(text)
        values["dev_losses"] = [(step, loss) for step, loss in values["dev_losses"]]
        return cls(**values)


def write_checkpoint(path: Path, tensors: "Mapping[str, Tensor]", standing: Standing) -> None:
    """Write a checkpoint beside the old one, then rename it: a reader finds either, and whole."""
    from safetensors.torch import save

    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(dict(tensors), metadata={"standing": standing.to_json()}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path) -> "tuple[dict[str, Tensor], Standing] | None":
    """Return the tensors of a checkpoint and where it stands; None if there is none.

    Raises:
        InvalidInput: The file was changed.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, Standing.from_json(file.metadata()["standing"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} is not a whole checkpoint ({error}): start anew without --resume."
        raise InvalidInput(msg) from error
