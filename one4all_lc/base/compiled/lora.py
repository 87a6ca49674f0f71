"""What adapters add to tokens: each one's own factors, read once for its neighbours.

    h = x @ A.T      (tokens, rank)
    y += h @ B       (tokens, out)      B of shape (rank, out)

Neighbours that share a mixture are a unit of work. Where the processor multiplies pairs of bfloat16
that is what computes both products, four tokens at once, h rounded as it is in PEFT. Elsewhere,
and for ranks and widths that do not fit, a few tokens are computed with the factors as they lie in
memory, since reading them is what it costs; for many they are made float32 first.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from torch import Tensor

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
from one4all_lc.base.compiled.vectors import (
    BYTES,
    CODES,
    PAIRS,
    ZEROS,
    Code,
    fits,
    written,
)

DECODED, READ = 4, 8
"""Tokens of one unit of work: so few that one mixture is work for several threads."""

FIELDS = 6
"""Of a factor pair: addresses of A and B, rank, first output, outputs, bits of the weight."""


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


TOGETHER = 4
"""Tokens, and ranks, that are computed at once: they share what is loaded."""

WIDTH = 32
"""Elements of bfloat16 that one instruction reads."""


def _dots(code: Code, tokens: int, *arguments: Any) -> None:
    """Write h = x @ a.T for so many tokens, float32."""
    x, a, steps, rank, row_bytes, h = arguments
    blocks = code.builder.sdiv(rank, code.number(TOGETHER))

    def block(index: Any, _: list[Any]) -> list[Any]:
        first = code.at(a, code.builder.mul(index, code.times(row_bytes, TOGETHER)))

        def step(number: Any, sums: list[Any]) -> list[Any]:
            at = code.times(number, BYTES)
            given, factors = (
                [
                    code.load(PAIRS, code.at(start, code.times(row_bytes, i), at), align=2)
                    for i in range(count)
                ]
                for start, count in ((x, tokens), (first, TOGETHER))
            )
            return [
                code.dot(sums[m * TOGETHER + r], given[m], factors[r])
                for m in range(tokens)
                for r in range(TOGETHER)
            ]

        sums = code.loop(steps, [ZEROS] * tokens * TOGETHER, step)
        place = code.at(h, code.times(index, TOGETHER * 4))
        for i, value in enumerate(sums):
            m, r = divmod(i, TOGETHER)
            to = code.at(place, code.times(rank, m * 4), r * 4)
            code.store(code.total(value), to, align=4)
        return []

    code.loop(blocks, [], block)


@written
def _shrink_pairs(code: Code, tokens: Any, *arguments: Any) -> None:
    """Set h (tokens, rank), float32, to x @ a.T for up to `TOGETHER` tokens."""
    code.either(
        tokens,
        {n: lambda n=n: _dots(code, n, *arguments) for n in range(1, TOGETHER + 1)},  # type: ignore[misc]
    )


def _sums(code: Code, tokens: int, *arguments: Any) -> None:
    """Write y += h @ b for so many tokens."""
    h, b, pairs, width_bytes, y, row_bytes = arguments

    def block(index: Any, _: list[Any]) -> list[Any]:
        at = code.times(index, BYTES)

        def pair(number: Any, sums: list[Any]) -> list[Any]:
            first = code.at(b, code.builder.mul(number, code.times(width_bytes, 2)), at)
            rows = [
                code.load(CODES, place, align=2) for place in (first, code.at(first, width_bytes))
            ]
            values = code.interleaved(*rows)
            for m in range(tokens):
                place = code.at(h, code.times(pairs, 4 * m), code.times(number, 4))
                given = code.repeated(place)
                for t in range(2):
                    sums[2 * m + t] = code.dot(sums[2 * m + t], given, values[t])
            return sums

        sums = code.loop(pairs, [ZEROS] * 2 * tokens, pair)
        for m in range(tokens):
            place = code.at(y, code.times(row_bytes, m), at)
            low, high = code.widened(code.load(CODES, place, align=2))
            both = code.added(low, sums[2 * m]), code.added(high, sums[2 * m + 1])
            code.store(code.rounded(*both), place, align=2)
        return []

    code.loop(code.builder.sdiv(width_bytes, code.number(BYTES)), [], block)


@written
def _expand_pairs(code: Code, tokens: Any, *arguments: Any) -> None:
    """Add h @ b to y for up to `TOGETHER` tokens, h of shape (tokens, rank) in bfloat16."""
    code.either(
        tokens,
        {n: lambda n=n: _sums(code, n, *arguments) for n in range(1, TOGETHER + 1)},  # type: ignore[misc]
    )


@Kernel.where(fits)
def _add_pairs(pointer: Any) -> None:
    arguments = carray(integers(pointer), 9)
    count, features, outputs = arguments[1], arguments[4], arguments[5]
    units = table(arguments[6], (count, 5), pointer)
    group, rank = arguments[7], arguments[8]
    wide = np.empty(TOGETHER * rank, np.float32)
    h = np.empty(TOGETHER * rank, np.uint16)
    while True:
        unit = take(integers(pointer))
        if unit >= count:
            break
        first, rows, factors = units[unit, 0], units[unit, 1], units[unit, 3]
        pairs = table(units[unit, 2] + 8 * FIELDS * factors * group, (factors, FIELDS), pointer)
        for pair in range(factors):
            a, b, own = pairs[pair, 0], pairs[pair, 1], pairs[pair, 2]
            begin, width = pairs[pair, 3], pairs[pair, 4]
            weight = as_float(types.uint32(pairs[pair, 5]))
            for done in range(0, rows if own else 0, TOGETHER):
                n = min(TOGETHER, rows - done)
                x = arguments[2] + 2 * (first + done) * features
                y = arguments[3] + 2 * ((first + done) * outputs + begin)
                steps = features // WIDTH
                _shrink_pairs((n, x, a, steps, own, 2 * features, wide.ctypes.data))
                for i in range(n * own):
                    h[i] = narrow(wide[i] * weight, h[i])
                _expand_pairs((n, h.ctypes.data, b, own // 2, 2 * width, y, 2 * outputs))


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
    x = np.empty((READ, features), np.float32)
    scratch = np.empty(rank, np.float32), np.empty(outputs, np.float32)
    while True:
        unit = take(integers(pointer))
        if unit >= count:
            break
        first, rows, factors = units[unit, 0], units[unit, 1], units[unit, 3]
        read = units[unit, 4]
        pairs = table(units[unit, 2] + 8 * FIELDS * factors * group, (factors, FIELDS), pointer)
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
    x: Tensor, y: Tensor, units: Tensor, group: int, rank: int, *, in_pairs: bool = False
) -> None:
    """Add to y what adapters make of x.

    Args:
        x: Shape (rows, in), contiguous.
        y: Shape (rows, out), contiguous.
        units: Shape (units, 5), int64: first row, number of rows up to `DECODED` or `READ`, address
            of their mixture's table, how many factor pairs that has for each group of layers, and 1
            for rows of a prompt, 0 for decoded ones: without pairs they differ in the last bit.
            A table has `FIELDS` int64 a pair; a pair of rank 0 adds nothing.
        group: Which group of layers x is the input of.
        rank: The largest.
        in_pairs: Whether every rank is a multiple of `TOGETHER`, and every width of `WIDTH`.
    """
    kernel = _add_pairs if in_pairs and fits(x.dtype) else _add
    kernel(
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
