"""What adapters add to a few tokens, in pairs of bfloat16: four tokens at once share a factor.

h = x @ A.T      (tokens, rank)    rounded as it is in PEFT
y += h @ B       (tokens, out)     B of shape (rank, out)
"""

from typing import Any

import numpy as np
from numba import carray, njit, types

from one4all_lc.base.compiled.elements import as_float, integers, narrow, table, take
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.lora_layout import FIELDS
from one4all_lc.base.compiled.vectors import BYTES, CODES, PAIRS, ZEROS, Code, fits, written

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


@njit
def add_few(x: Any, y: Any, rows: Any, row_bytes: Any, pair: Any, room: Any) -> None:
    """Add what one factor pair makes of some rows.

    Args:
        x: Address of the first row of inputs.
        y: Of the first row of outputs.
        rows: How many.
        row_bytes: Of a row of x, and of one of y.
        pair: `FIELDS` of a table.
        room: For h in float32 and in bfloat16, `TOGETHER` times the rank.
    """
    wide, h = room
    a, b, rank, begin, width = pair[0], pair[1], pair[2], pair[3], pair[4]
    weight = as_float(types.uint32(pair[5]))
    for done in range(0, rows if rank else 0, TOGETHER):
        n = min(TOGETHER, rows - done)
        given, to = x + done * row_bytes[0], y + done * row_bytes[1] + 2 * begin
        steps = row_bytes[0] // BYTES
        _shrink_pairs((n, given, a, steps, rank, row_bytes[0], wide.ctypes.data))
        for i in range(n * rank):
            h[i] = narrow(wide[i] * weight, h[i])
        _expand_pairs((n, h.ctypes.data, b, rank // 2, 2 * width, to, row_bytes[1]))


@njit
def room_for(rank: Any) -> Any:
    """Return what `add_few` needs for ranks up to this one."""
    return np.empty(TOGETHER * rank, np.float32), np.empty(TOGETHER * rank, np.uint16)


@njit
def asked(arguments: Any, unit: Any, pointer: Any) -> Any:
    """Return of a unit where x and y begin, rows, whether it reads a prompt, and its pairs."""
    first, rows, factors, read = unit[0], unit[1], unit[3], unit[4]
    pairs = unit[2] + 8 * FIELDS * factors * arguments[7]
    x, y = arguments[2] + 2 * first * arguments[4], arguments[3] + 2 * first * arguments[5]
    return x, y, rows, read, table(pairs, (factors, FIELDS), pointer)


@Kernel.where(fits)
def add_pairs(pointer: Any) -> None:
    """Add what adapters make of rows, as `lora.add` calls it."""
    arguments = carray(integers(pointer), 9)
    count = arguments[1]
    units = table(arguments[6], (count, 5), pointer)
    row_bytes = 2 * arguments[4], 2 * arguments[5]
    room = room_for(arguments[8])
    while True:
        unit = take(integers(pointer))
        if unit >= count:
            break
        x, y, rows, _, pairs = asked(arguments, units[unit], pointer)
        for pair in range(len(pairs)):
            add_few(x, y, rows, row_bytes, pairs[pair], room)
