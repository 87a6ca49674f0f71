"""Beginnings of prompts that need not be computed again.

An entry is one tile of a prompt: `TILE` tokens after a given beginning, as one mixture of adapters
sees them. It is found by the mixture's identities and weights and by every token up to its end,
never by a name and never by tokens alone: two experts that share a system prompt share no keys.

Only whole tiles that were read as a prompt are kept. They come out with the same bits whichever
request reads them, so an answer is the same with and without reuse.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Block(Protocol):
    """What was computed for some positions of a prompt."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes."""


BlockT = TypeVar("BlockT", bound=Block)

Key = tuple[object, tuple[int, ...]]
"""The beginning (a mixture or an entry's number) and the tokens that follow it."""


@dataclass(frozen=True, eq=False)
class _Entry(Generic[BlockT]):
    number: int
    block: BlockT


class PrefixCache(Generic[BlockT]):
    """Tiles of prompts, least recently used out first. Knows no torch.

    Args:
        budget: Bytes.
        tile: Tokens of an entry.
    """

    def __init__(self, budget: int, tile: int) -> None:
        self.budget, self.tile = budget, tile
        self._entries: OrderedDict[Key, _Entry[BlockT]] = OrderedDict()
        self._lock = threading.Lock()
        self._made = 0
        self.memory_bytes = 0
        self.hit_tokens = 0
        self.asked_tokens = 0

    def find(self, mixture: object, prompt: Sequence[int]) -> list[BlockT]:
        """Return the tiles of the longest known beginning; the last token is left to compute."""
        with self._lock:
            keys = self._known(mixture, prompt[:-1])
            blocks = [self._entries[key].block for key in keys]
            self._touch(keys)
            self.asked_tokens += len(prompt)
            self.hit_tokens += len(keys) * self.tile
            return blocks

    def store(
        self,
        mixture: object,
        prompt: Sequence[int],
        read: Callable[[slice], BlockT],
    ) -> None:
        """Keep the whole tiles of a prompt that has been computed.

        Args:
            mixture: What it was computed with: (identity, weight) pairs.
            prompt: Its tokens.
            read: Copies what was computed for a slice of its positions.
        """
        if not self.budget:
            return
        with self._lock:
            keys = self._known(mixture, prompt)
            parent: object = self._entries[keys[-1]].number if keys else mixture
            first = len(keys) * self.tile
            for start in range(first, len(prompt) - self.tile + 1, self.tile):
                key = (parent, tuple(prompt[start : start + self.tile]))
                block = read(slice(start, start + self.tile))
                self._made += 1
                self._entries[key] = _Entry(self._made, block)
                self.memory_bytes += block.memory_bytes
                parent = self._made
                keys.append(key)
            self._touch(keys)
            while self.memory_bytes > self.budget:
                _, gone = self._entries.popitem(last=False)
                self.memory_bytes -= gone.block.memory_bytes

    def _known(self, mixture: object, prompt: Sequence[int]) -> list[Key]:
        keys: list[Key] = []
        parent: object = mixture
        for start in range(0, len(prompt) - self.tile + 1, self.tile):
            key = (parent, tuple(prompt[start : start + self.tile]))
            entry = self._entries.get(key)
            if entry is None:
                break
            keys.append(key)
            parent = entry.number
        return keys

    def _touch(self, keys: Sequence[Key]) -> None:
        """Mark as used, the beginning last: an entry never outlives the one that it follows."""
        for key in reversed(keys):
            self._entries.move_to_end(key)
