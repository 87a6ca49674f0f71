"""Keys and values of every running row, in slots.

Every row starts at column 0 of its slot, so what a row sees does not depend on its neighbours, and
a row joins or leaves without moving the others. The models write into the slots through
transformers' own `Cache` interface.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64
"""Columns are read in whole blocks.

The attention kernels sum over columns in vectors and treat a ragged end otherwise, so in bfloat16 a
row's last bits would depend on how long its longest neighbour is. Over whole blocks the columns
that a row does not see add exact zeros: it gets the same bits alone and in company.
"""


@dataclass(frozen=True, eq=False)
class Window:
    """Where one forward writes and how far it reads.

    Attributes:
        first: The first slot.
        positions: Column of every token, shape (rows, length).
        longest: Columns that the longest row fills, this forward's tokens included.
    """

    first: int
    positions: Tensor
    longest: int

    @property
    def slots(self) -> slice:
        """The slots of its rows."""
        return slice(self.first, self.first + self.positions.shape[0])

    @property
    def end(self) -> int:
        """Columns to read."""
        return -(-self.longest // BLOCK) * BLOCK


class SlotCache(Cache):  # type: ignore[misc]
    """A key/value cache whose rows live in slots.

    Args:
        layers: Number of attention layers.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_SlotLayer() for _ in range(layers)])

    def reserve(self, slots: int, columns: int) -> None:
        """Make room at the next forward; what lies beyond both may be dropped then."""
        columns = -(-columns // BLOCK) * BLOCK
        slots = 1 << max(0, slots - 1).bit_length()  # rows that join one by one move it seldom
        for layer in self.layers:
            layer.room = (slots, columns)

    def aim(self, window: Window) -> None:
        """Set where the next forward writes and how far it reads."""
        for layer in self.layers:
            layer.window = window

    def clear(self, slot: int) -> None:
        """Forget a slot: a masked NaN of one request would still poison the next one's sums."""
        for layer in self.layers:
            if layer.is_initialized and slot < layer.keys.shape[0]:
                layer.keys[slot] = 0
                layer.values[slot] = 0


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: keys and values of shape (slots, heads, columns, width)."""

    window: Window
    room: tuple[int, int] = (0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start without slots; `update` makes the room that was reserved."""
        self.keys = key_states.new_zeros((0, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((0, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, length, width) and return all columns that the rows may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        if self.keys.shape[0] < self.room[0] or self.keys.shape[2] < self.room[1]:
            self.keys, self.values = (_moved(item, *self.room) for item in (self.keys, self.values))
        rows = torch.arange(window.positions.shape[0], device=key_states.device)[:, None]
        keys, values = self.keys[window.slots], self.values[window.slots]
        # Indices around a slice: the indexed axes come first, (rows, length, heads, width).
        keys[rows, :, window.positions] = key_states.transpose(1, 2)
        values[rows, :, window.positions] = value_states.transpose(1, 2)
        return keys[:, :, : window.end], values[:, :, : window.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what is read; masks are made by `decoding`, so nobody asks twice."""
        return self.window.end, 0

    def get_seq_length(self) -> int:
        """Columns before this forward's, of the longest row."""
        return int(self.window.longest - self.window.positions.shape[1])

    def get_max_length(self) -> int:
        """No bound: slots grow."""
        return -1


def _moved(store: Tensor, slots: int, columns: int) -> Tensor:
    """Return a store of another shape with what both have in common."""
    _, heads, _, width = store.shape
    # Zeros, not whatever memory held: see `SlotCache.clear`.
    moved = store.new_zeros((slots, heads, columns, width))
    common = store[:slots, :, :columns]
    moved[: common.shape[0], :, : common.shape[2]] = common
    return moved
