"""Keys and values of every running row, in slots.

Every row starts at column 0 of its slot, so what a row sees does not depend on its neighbours, and
a row joins or leaves without moving the others. The models write into the slots through
transformers' own `Cache` interface.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from one4all_lc.base.compiled import slots as kernel
from one4all_lc.engine.attention import TILE


@dataclass(frozen=True, eq=False)
class Columns:
    """Copied columns of a slot.

    Attributes:
        layers: For each layer keys and values, each of shape (heads, columns, size).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def memory_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class SlotCache(Cache):  # type: ignore[misc]
    """A key/value cache whose rows live in slots.

    Args:
        layers: Number of attention layers.
        compiled: Whether kernels of our own write and read it.
    """

    def __init__(self, layers: int, *, compiled: bool) -> None:
        super().__init__(layers=[_SlotLayer(compiled=compiled) for _ in range(layers)])

    def reserve(self, slots: int, columns: int) -> None:
        """Make room at the next forward; what lies beyond both may be dropped then."""
        columns = -(-columns // TILE) * TILE
        slots = 1 << max(0, slots - 1).bit_length()  # rows that join one by one move it seldom
        for layer in self.layers:
            layer.room = (slots, columns)

    def check(self, slot: int, columns: int) -> None:
        """Refuse to write where no room was reserved: kernels do not look.

        Raises:
            IndexError: There is none.
        """
        room = self.layers[0].room
        if not (0 <= slot < room[0] and columns <= room[1]):
            msg = f"{columns} columns of slot {slot}: there is room for {room}"
            raise IndexError(msg)

    def aim(self, slots: Tensor, positions: Tensor) -> None:
        """Set where the next forward writes: slot and column of every token, shape (tokens,)."""
        for layer in self.layers:
            layer.target = (slots, positions)

    def settle(self) -> object:
        """Make the room that was reserved; return what changes whenever anything was moved."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.make_room()
        return tuple(layer.place for layer in self.layers if layer.is_initialized)

    def clear(self, slot: int) -> None:
        """Forget a slot: a masked NaN of one request would still poison the next one's sums."""
        for layer in self.layers:
            if layer.is_initialized and slot < layer.keys.shape[0]:
                layer.keys[slot] = 0
                layer.values[slot] = 0

    def read(self, slot: int, columns: slice) -> Columns:
        """Copy some columns of a slot."""
        layers = tuple(
            (layer.keys[slot, :, columns].clone(), layer.values[slot, :, columns].clone())
            for layer in self.layers
        )
        return Columns(layers)

    def write(self, slot: int, columns: slice, copied: Columns) -> None:
        """Put copied columns into a slot."""
        for layer, (keys, values) in zip(self.layers, copied.layers, strict=True):
            layer.make_room()
            layer.keys[slot, :, columns] = keys
            layer.values[slot, :, columns] = values


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: keys and values of shape (slots, heads, columns, size)."""

    target: tuple[Tensor, Tensor]
    room: tuple[int, int] = (0, 0)

    def __init__(self, *, compiled: bool) -> None:
        super().__init__()
        self._compiled = compiled

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start without slots; `make_room` makes those that were reserved."""
        if key_states.shape[3] != value_states.shape[3] or key_states.dtype != value_states.dtype:
            msg = f"keys are {key_states[0, 0, 0].shape}, values {value_states[0, 0, 0].shape}"
            raise TypeError(msg)
        self.keys = key_states.new_zeros((0, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((0, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def make_room(self) -> None:
        """Grow to what was reserved."""
        if self.keys.shape[0] < self.room[0] or self.keys.shape[2] < self.room[1]:
            self.keys, self.values = (_moved(item, *self.room) for item in (self.keys, self.values))

    @property
    def place(self) -> tuple[int, ...]:
        """Where keys and values lie, and how."""
        return self.keys.data_ptr(), self.values.data_ptr(), *self.keys.stride()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (1, heads, tokens, size) into the slots and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room()
        for x, store in ((key_states, self.keys), (value_states, self.values)):
            if self._compiled:
                kernel.write(x if x.stride(3) == 1 else x.contiguous(), store, *self.target)
            else:
                # Indices around a slice: the indexed axes come first, (tokens, heads, size).
                slots, positions = self.target
                store[slots, :, positions] = x[0].transpose(0, 1)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what is read; masks are `attention`'s, so nobody uses them."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Columns before this forward's: positions are given, so nobody uses it."""
        return 0

    def get_max_length(self) -> int:
        """No bound: slots grow."""
        return -1


def _moved(store: Tensor, slots: int, columns: int) -> Tensor:
    """Return a store of another shape with what both have in common."""
    _, heads, _, size = store.shape
    # Zeros, not whatever memory held: see `SlotCache.clear`.
    moved = store.new_zeros((slots, heads, columns, size))
    common = store[:slots, :, :columns]
    moved[: common.shape[0], :, : common.shape[2]] = common
    return moved
