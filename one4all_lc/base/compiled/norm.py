"""Root-mean-square norms."""

from typing import Any

import numpy as np
import torch
from numba import carray, types
from torch import Tensor

from one4all_lc.base.compiled.elements import as_float, elements, integers, narrow, take, widen
from one4all_lc.base.compiled.kernel import Kernel, bits_of

_ALONE = 1 << 14
"""Elements that one thread norms sooner than it wakes others."""


@Kernel
def _norm(pointer: Any) -> None:
    arguments = carray(integers(pointer), 7)
    rows, size = arguments[1], arguments[5]
    epsilon = as_float(types.uint32(arguments[6]))
    gain = elements(arguments[3], 0, size, pointer)
    while True:
        row = take(integers(pointer))
        if row >= rows:
            break
        x = elements(arguments[2], row * size, size, pointer)
        y = elements(arguments[4], row * size, size, pointer)
        total = np.float32(0)
        for i in range(size):
            total += widen(x[i]) * widen(x[i])
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + epsilon)
        for i in range(size):
            y[i] = narrow(widen(x[i]) * scale * widen(gain[i]), x[i])


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Norm x of shape (..., features) and multiply with a gain of shape (features,)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    size = gain.shape[0]
    _norm(
        x.dtype,
        x.numel() // size,
        x.data_ptr(),
        gain.data_ptr(),
        y.data_ptr(),
        size,
        bits_of(epsilon),
        parallel=x.numel() > _ALONE,
    )
    return y
