"""The gate of a feed-forward layer: silu(a) * b."""

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from one4all_lc.base.compiled.elements import (
    elements,
    exponential,
    integers,
    narrow,
    take,
    widen,
)
from one4all_lc.base.compiled.kernel import Kernel

_ALONE = 1 << 12
"""Elements that one thread computes sooner than it wakes others."""


@Kernel
def _gate(pointer: Any) -> None:
    arguments = carray(integers(pointer), 5)
    rows, size = arguments[1], arguments[4]
    one = np.float32(1)
    while True:
        row = take(integers(pointer))
        if row >= rows:
            break
        gates = elements(arguments[2], row * 2 * size, size, pointer)
        values = elements(arguments[2], row * 2 * size + size, size, pointer)
        y = elements(arguments[3], row * size, size, pointer)
        for i in range(size):
            gate = widen(gates[i])
            small = exponential(-abs(gate))  # of a number up to 0: it cannot overflow
            share = (one if gate >= np.float32(0) else small) / (one + small)
            y[i] = narrow(gate * share * widen(values[i]), gates[i])


def silu_gate(joined: Tensor) -> Tensor:
    """Map (..., 2 * features), gates and then values, contiguous, to (..., features)."""
    size = joined.shape[-1] // 2
    y = joined.new_empty(*joined.shape[:-1], size)
    rows = y.numel() // size
    _gate(
        joined.dtype,
        rows,
        joined.data_ptr(),
        y.data_ptr(),
        size,
        parallel=rows > 1 and y.numel() > _ALONE,
    )
    return y
