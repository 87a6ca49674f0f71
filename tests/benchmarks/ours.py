"""This project's engine as benchmarks drive it."""

from collections.abc import Sequence
from pathlib import Path

from one4all_lc.base.loading import SharedBase
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.handle import Handle
from one4all_lc.engine.request import Request
from one4all_lc.folder import read_expert
from one4all_lc.sampling import Sampling
from tests.experts import write_expert

EXPERTS = 8


class Ours:
    """The engine on the embedded base, as it is served by default, with experts of rank 16.

    Args:
        folder: Where the experts' folders are written.
    """

    def __init__(self, folder: Path) -> None:
        self.base = SharedBase.load()
        self.folders = [
            write_expert(
                folder / f"expert{number}", self.base.facts, rank=16, seed=number, strength=0.01
            )
            for number in range(EXPERTS)
        ]
        self.engine = Engine.of(self.base)
        self._experts = [read_expert(folder, self.base.facts) for folder in self.folders]

    def run(
        self, prompts: Sequence[tuple[int, ...]], adapters: Sequence[int | None], tokens: int
    ) -> list[int]:
        """Submit all prompts at once and wait for all answers; return how many tokens each has."""
        handles = [
            self.submit(prompt, adapter, tokens)
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        return [len(handle.result().tokens) for handle in handles]

    def submit(self, prompt: tuple[int, ...], adapter: int | None, tokens: int) -> Handle:
        """Submit one prompt; its answer has exactly so many tokens."""
        mixture = () if adapter is None else ((self._experts[adapter], 1.0),)
        return self.engine.submit(Request(prompt, mixture, exactly(tokens)))


def exactly(tokens: int) -> Sampling:
    """Return how to choose greedily, and no fewer tokens than these."""
    return Sampling(max_tokens=tokens, min_tokens=tokens)


def mixed(rows: int) -> list[int]:
    """Return an adapter for each row: all experts in turn."""
    return [row % EXPERTS for row in range(rows)]
