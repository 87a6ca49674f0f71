"""What adapters add to tokens: each one's own factors, read once for its neighbours.

    h = x @ A.T      (tokens, rank)
    y += h @ B       (tokens, out)      B of shape (rank, out)

Neighbours that share a mixture are a unit of work. Where the processor multiplies pairs of bfloat16
that is what computes both products, h rounded as it is in PEFT: `lora_pairs`, and `lora_tiles` for
prompts. Elsewhere, and for ranks and widths that do not fit, a few tokens are computed with the
factors as they lie in memory, since reading them is what it costs; for many they are made float32
first.
"""

from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from torch import Tensor

from one4all_lc.base.compiled import tiles, vectors
from one4all_lc.base.compiled.elements import (
    FAST,
    as_float,
    elements,
    integers,
    narrow,
    table,
    take,
    widen,
)
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.lora_layout import FIELDS
from one4all_lc.base.compiled.lora_pairs import add_pairs
from one4all_lc.base.compiled.lora_tiles import add_tiles


@njit(fastmath=FAST)
def _shrink(x: Any, a: Any, weight: Any, h: Any) -> None:
    """Set h to weight * a @ x, eight ranks at once: they share the loads of x."""
    rank, features = a.shape
    for r in range(0, rank - 7, 8):
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        s4, s5, s6, s7 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(features):
            s0 += x[i] * widen(a[r, i])
            s1 += x[i] * widen(a[r + 1, i])
            s2 += x[i] * widen(a[r + 2, i])
            s3 += x[i] * widen(a[r + 3, i])
            s4 += x[i] * widen(a[r + 4, i])
            s5 += x[i] * widen(a[r + 5, i])
            s6 += x[i] * widen(a[r + 6, i])
            s7 += x[i] * widen(a[r + 7, i])
        h[r], h[r + 1], h[r + 2], h[r + 3] = s0 * weight, s1 * weight, s2 * weight, s3 * weight
        h[r + 4], h[r + 5], h[r + 6], h[r + 7] = s4 * weight, s5 * weight, s6 * weight, s7 * weight
    for r in range(rank - rank % 8, rank):
        s0 = np.float32(0)
        for i in range(features):
            s0 += x[i] * widen(a[r, i])
        h[r] = s0 * weight


@njit(fastmath=FAST)
def _expand(h: Any, b: Any, y: Any) -> None:
    """Add h @ b to y, eight ranks at once: they share the loads of y."""
    rank, outputs = b.shape
    for r in range(0, rank - 7, 8):
        for i in range(outputs):
            y[i] += (
                h[r] * widen(b[r, i])
                + h[r + 1] * widen(b[r + 1, i])
                + h[r + 2] * widen(b[r + 2, i])
                + h[r + 3] * widen(b[r + 3, i])
                + h[r + 4] * widen(b[r + 4, i])
                + h[r + 5] * widen(b[r + 5, i])
                + h[r + 6] * widen(b[r + 6, i])
                + h[r + 7] * widen(b[r + 7, i])
            )
    for r in range(rank - rank % 8, rank):
        for i in range(outputs):
            y[i] += h[r] * widen(b[r, i])


@njit(fastmath=FAST)
def _add_pair(x: Any, a: Any, b: Any, weight: Any, y: Any, scratch: Any) -> None:
    """Add weight * x @ a.T @ b to y, which has the elements of a tensor."""
    h, sums = scratch
    _shrink(x, a, weight, h)
    for i in range(b.shape[1]):
        sums[i] = widen(y[i])
    _expand(h, b, sums)
    for i in range(b.shape[1]):
        y[i] = narrow(sums[i], y[i])


@njit(fastmath=FAST)
def _widened(factor: Any) -> Any:
    """Return a factor in float32."""
    wide = np.empty(factor.shape, np.float32)
    for r in range(factor.shape[0]):
        for i in range(factor.shape[1]):
            wide[r, i] = widen(factor[r, i])
    return wide


@Kernel
def _add(pointer: Any) -> None:
    arguments = carray(integers(pointer), 9)
    count, features, outputs = arguments[1], arguments[4], arguments[5]
    units = table(arguments[6], (count, 5), pointer)
    group, rank = arguments[7], arguments[8]
    scratch = np.empty(rank, np.float32), np.empty(outputs, np.float32)
    while True:
        unit = take(integers(pointer))
        if unit >= count:
            break
        first, rows, factors = units[unit, 0], units[unit, 1], units[unit, 3]
        read = units[unit, 4]
        pairs = table(units[unit, 2] + 8 * FIELDS * factors * group, (factors, FIELDS), pointer)
        x = np.empty((rows, features), np.float32)
        for row in range(rows):
            given = elements(arguments[2], (first + row) * features, features, pointer)
            for i in range(features):
                x[row, i] = widen(given[i])
        for pair in range(factors):
            own, begin, width = pairs[pair, 2], pairs[pair, 3], pairs[pair, 4]
            a = elements(pairs[pair, 0], 0, (own, features), pointer)
            b = elements(pairs[pair, 1], 0, (own, width), pointer)
            weight = as_float(types.uint32(pairs[pair, 5]))
            if read:
                wide_a, wide_b = _widened(a), _widened(b)
                for row in range(rows):
                    y = elements(arguments[3], (first + row) * outputs + begin, width, pointer)
                    _add_pair(x[row], wide_a, wide_b, weight, y, scratch)
            else:
                for row in range(rows):
                    y = elements(arguments[3], (first + row) * outputs + begin, width, pointer)
                    _add_pair(x[row], a, b, weight, y, scratch)


def add(
    x: Tensor,
    y: Tensor,
    units: Tensor,
    group: int,
    rank: int,
    *,
    in_pairs: bool = False,
    reads: bool = True,
) -> None:
    """Add to y what adapters make of x.

    Args:
        x: Shape (rows, in), contiguous.
        y: Shape (rows, out), contiguous.
        units: Shape (units, 5), int64, as `lora_layout` has them: rows up to `DECODED`, `READ` or
            `READ_IN_TILES`. Rows of a prompt and decoded ones differ in the last bit. A pair of
            rank 0 adds nothing.
        group: Which group of layers x is the input of.
        rank: The largest.
        in_pairs: Whether every rank is a multiple of `TOGETHER`, and every width of `WIDTH`.
        reads: Whether there are rows of prompts.
    """
    _kernel(x.dtype, in_pairs=in_pairs, reads=reads)(
        x.dtype,
        units.shape[0],
        x.data_ptr(),
        y.data_ptr(),
        x.shape[1],
        y.shape[1],
        units.data_ptr(),
        group,
        rank,
        parallel=units.shape[0] > 1,
    )


def _kernel(dtype: torch.dtype, *, in_pairs: bool, reads: bool) -> Kernel:
    if not in_pairs:
        return _add
    if reads and tiles.fits(dtype):
        return add_tiles
    return add_pairs if vectors.fits(dtype) else _add
