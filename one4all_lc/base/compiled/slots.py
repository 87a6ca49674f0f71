"""Writing keys and values into the slots of the cache."""

from typing import Any

from numba import carray
from torch import Tensor

from one4all_lc.base.compiled.elements import ALONE, elements, integers, table, take
from one4all_lc.base.compiled.kernel import Kernel


@Kernel
def _write(pointer: Any) -> None:
    arguments = carray(integers(pointer), 12)
    tokens, heads, size = arguments[1], arguments[4], arguments[5]
    slots, columns = table(arguments[10], tokens, pointer), table(arguments[11], tokens, pointer)
    while True:
        token = take(integers(pointer))
        if token >= tokens:
            break
        for head in range(heads):
            source = token * arguments[6] + head * arguments[7]
            target = slots[token] * arguments[8] + head * arguments[9] + columns[token] * size
            x = elements(arguments[2], source, size, pointer)
            y = elements(arguments[3], target, size, pointer)
            for i in range(size):
                y[i] = x[i]


def write(x: Tensor, store: Tensor, slots: Tensor, columns: Tensor) -> None:
    """Write what was computed for tokens into a store.

    Args:
        x: Shape (1, heads, tokens, size), with the elements of a head side by side.
        store: Shape (slots, heads, columns, size), contiguous.
        slots: The slot of every token, int64.
        columns: The column of every token, int64.
    """
    _, heads, tokens, size = x.shape
    _write(
        x.dtype,
        tokens,
        x.data_ptr(),
        store.data_ptr(),
        heads,
        size,
        x.stride(2),
        x.stride(1),
        store.stride(0),
        store.stride(1),
        slots.data_ptr(),
        columns.data_ptr(),
        parallel=tokens > ALONE,
    )
