"""Attention of single tokens: one query a head, and the keys up to its own position."""

from typing import Any

import numpy as np
from numba import carray, njit, types
from torch import Tensor

from one4all_lc.base.compiled.elements import (
    FAST,
    as_float,
    elements,
    exponential,
    integers,
    narrow,
    table,
    take,
    widen,
)
from one4all_lc.base.compiled.kernel import Kernel, bits_of


@njit(fastmath=FAST)
def _score(query: Any, keys: Any, scores: Any) -> None:
    """Multiply a query with every key, four at once: they share the loads of the query."""
    count, size = keys.shape
    for c in range(0, count - 3, 4):
        a, b, d, e = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(size):
            q = query[i]
            a += q * widen(keys[c, i])
            b += q * widen(keys[c + 1, i])
            d += q * widen(keys[c + 2, i])
            e += q * widen(keys[c + 3, i])
        scores[c], scores[c + 1], scores[c + 2], scores[c + 3] = a, b, d, e
    for c in range(count - count % 4, count):
        a = np.float32(0)
        for i in range(size):
            a += query[i] * widen(keys[c, i])
        scores[c] = a


@njit(fastmath=FAST)
def _weigh(scores: Any, count: Any) -> Any:
    """Turn scores into weights, and return their sum."""
    top = scores[0]
    for c in range(count):
        top = max(top, scores[c])
    total = np.float32(0)
    for c in range(count):
        weight = exponential(scores[c] - top)
        scores[c] = weight
        total += weight
    return total


@njit(fastmath=FAST)
def _add_up(weights: Any, values: Any, sums: Any) -> None:
    """Add up values by their weights, four at once: they share the loads of the sums."""
    count, size = values.shape
    for i in range(size):
        sums[i] = np.float32(0)
    for c in range(0, count - 3, 4):
        a, b, d, e = weights[c], weights[c + 1], weights[c + 2], weights[c + 3]
        for i in range(size):
            sums[i] += (
                a * widen(values[c, i])
                + b * widen(values[c + 1, i])
                + d * widen(values[c + 2, i])
                + e * widen(values[c + 3, i])
            )
    for c in range(count - count % 4, count):
        a = weights[c]
        for i in range(size):
            sums[i] += a * widen(values[c, i])


@Kernel
def _attend(pointer: Any) -> None:
    arguments = carray(integers(pointer), 17)
    units, rows, heads, key_heads, size = (
        arguments[1],
        arguments[6],
        arguments[7],
        arguments[8],
        arguments[9],
    )
    scale, window = as_float(types.uint32(arguments[12])), arguments[13]
    tokens, slots = table(arguments[14], rows, pointer), table(arguments[15], rows, pointer)
    positions = table(arguments[16], rows, pointer)
    groups = heads // key_heads
    query, sums = np.empty(size, np.float32), np.empty(size, np.float32)
    longest = 0
    for row in range(rows):
        longest = max(longest, positions[row] + 1)
    scores = np.empty(longest, np.float32)
    while True:
        unit = take(integers(pointer))
        if unit >= units:
            break
        row, key_head = unit // key_heads, unit % key_heads
        first = max(0, positions[row] + 1 - window)
        count = positions[row] + 1 - first
        begin = slots[row] * arguments[10] + key_head * arguments[11] + first * size
        keys = elements(arguments[3], begin, (count, size), pointer)
        values = elements(arguments[4], begin, (count, size), pointer)
        for head in range(key_head * groups, (key_head + 1) * groups):
            offset = (tokens[row] * heads + head) * size
            q = elements(arguments[2], offset, size, pointer)
            out = elements(arguments[5], offset, size, pointer)
            for i in range(size):
                query[i] = widen(q[i]) * scale
            _score(query, keys, scores)
            share = np.float32(1) / _weigh(scores, count)
            _add_up(scores, values, sums)
            for i in range(size):
                out[i] = narrow(sums[i] * share, q[i])


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    tokens: Tensor,
    slots: Tensor,
    positions: Tensor,
    scale: float,
    width: int | None,
) -> None:
    """Attend with some tokens, each by itself.

    Args:
        query: Shape (all tokens, heads, size), contiguous.
        keys: The layer's cache, shape (slots, key heads, columns, size), contiguous.
        values: The same.
        out: Like query; what the tokens attend to is written here.
        tokens: Which tokens, int64.
        slots: The slot of each, int64.
        positions: The column of each, int64.
        scale: Of the scores.
        width: How far back a token sees; None sees everything.
    """
    rows, heads, size = tokens.shape[0], query.shape[1], query.shape[2]
    key_heads = keys.shape[1]
    _attend(
        query.dtype,
        rows * key_heads,
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
        rows,
        heads,
        key_heads,
        size,
        keys.stride(0),
        keys.stride(1),
        bits_of(scale),
        keys.shape[2] if width is None else width,
        tokens.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
    )
