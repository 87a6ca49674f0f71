"""What adapters add to the tokens of prompts, on a processor with AMX.

Sixteen tokens are a tile as they lie. The factors are written as tiles read them, once for all
tokens of a unit of work:

    A    (16 ranks a block, in / 2 pairs, 16 ranks, 2 inputs)
    B    (rank / 2 pairs, out, 2 ranks)

Of fewer tokens each tile has as many; of more, the last 16 are a tile that may overlap the one
before it. Every token goes through the same sums.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types

from one4all_lc.base.compiled.elements import as_float, elements, integers, narrow, table, take
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.lora_layout import READ_IN_TILES
from one4all_lc.base.compiled.lora_pairs import WIDTH, add_few, asked, room_for
from one4all_lc.base.compiled.tiles import ROWS, configure, fits, restore, saved, whole_tiles
from one4all_lc.base.compiled.vectors import (
    BYTES,
    CODES,
    FLOATS,
    LANES,
    Code,
    aligned,
    keep,
    written,
)

SUMS, GIVEN, FACTOR, HIDDEN, FACTORS = (0, 1), 2, 3, 4, (5, 6)
"""Tiles: sums with 16 columns each; inputs; 16 ranks of A; h; ranks of B for 16 outputs each."""

TILE_BYTES = ROWS * BYTES


@written
def _shrink_tiles(code: Code, groups: Any, before_last: Any, *arguments: Any) -> None:
    """Write h (groups, 16, blocks of 16 ranks, 16), float32: the products of groups of rows with A.

    Args:
        code: Writes.
        groups: How many.
        before_last: Rows before the last group.
        *arguments: The first row's address, bytes from row to row; of A as tiles read it, its
            blocks, and the steps of 32 inputs in each; where h begins.
    """
    x, stride, a, blocks, steps, h = arguments
    row_bytes = code.times(blocks, BYTES)

    def group(index: Any, _: list[Any]) -> list[Any]:
        first = code.least(code.times(index, ROWS), before_last)
        given = code.at(x, code.product(first, stride))

        def block(number: Any, _: list[Any]) -> list[Any]:
            factor = code.at(a, code.times(code.product(number, steps), TILE_BYTES))
            code.clear_tile(SUMS[0])

            def step(at: Any, _: list[Any]) -> list[Any]:
                code.load_tile(GIVEN, code.at(given, code.times(at, BYTES)), stride)
                code.load_tile(
                    FACTOR, code.at(factor, code.times(at, TILE_BYTES)), code.number(BYTES)
                )
                code.dot_tiles(SUMS[0], GIVEN, FACTOR)
                return []

            code.loop(steps, [], step)
            place = code.at(h, code.times(code.product(index, row_bytes), ROWS))
            code.store_tile(SUMS[0], code.at(place, code.times(number, BYTES)), row_bytes)
            return []

        code.loop(blocks, [], block)
        return []

    code.loop(groups, [], group)


def _add_rows(code: Code, rows: Any, products: Any, y: Any, row_bytes: Any) -> None:
    """Add rows of 32 products to rows of y."""

    def row(number: Any, _: list[Any]) -> list[Any]:
        sums = code.at(products, code.times(number, 2 * BYTES))
        place = code.at(y, code.product(number, row_bytes))
        low, high = code.widened(code.load(CODES, place, align=2))
        low = code.added(low, code.load(FLOATS, sums))
        high = code.added(high, code.load(FLOATS, code.at(sums, BYTES)))
        code.store(code.rounded(low, high), place, align=2)
        return []

    code.loop(rows, [], row)


@written
def _expand_tiles(code: Code, blocks: Any, groups: Any, rows: Any, *arguments: Any) -> None:
    """Add h @ B to rows of y, 32 outputs at once.

    Args:
        code: Writes.
        blocks: Of 32 outputs.
        groups: Of rows.
        rows: Of a group.
        *arguments: Rows before the last group; where h (groups, 16, ranks) begins, bytes of its
            rows; B as pairs, bytes of a pair of ranks; steps, bytes of a step in h and in B; where
            y begins, bytes of its rows; room for a group's products.
    """
    before_last, h, h_bytes, b, pair_bytes, steps, h_step, b_step, y, row_bytes, products = (
        arguments
    )

    def block(index: Any, _: list[Any]) -> list[Any]:
        factors = code.at(b, code.times(index, 2 * BYTES))

        def group(number: Any, _: list[Any]) -> list[Any]:
            given = code.at(h, code.times(code.product(number, h_bytes), ROWS))
            for tile in SUMS:
                code.clear_tile(tile)

            def step(at: Any, _: list[Any]) -> list[Any]:
                code.load_tile(HIDDEN, code.at(given, code.product(at, h_step)), h_bytes)
                for t, tile in enumerate(FACTORS):
                    place = code.at(factors, code.product(at, b_step), t * BYTES)
                    code.load_tile(tile, place, pair_bytes)
                    code.dot_tiles(SUMS[t], HIDDEN, tile)
                return []

            code.loop(steps, [], step)
            for t, tile in enumerate(SUMS):
                code.store_tile(tile, code.at(products, t * BYTES), code.number(2 * BYTES))
            before = code.times(number, ROWS)
            first = code.least(before, before_last)
            done = code.difference(before, first)  # rows that the group before this one has
            place = code.at(y, code.product(before, row_bytes), code.times(index, BYTES))
            left = code.at(products, code.times(done, 2 * BYTES))
            _add_rows(code, code.difference(rows, done), left, place, row_bytes)
            return []

        code.loop(groups, [], group)
        return []

    code.loop(blocks, [], block)


@written
def _pair_up(code: Code, pairs: Any, blocks: Any, b: Any, to: Any) -> None:
    """Write B (rank, 32 outputs a block) as pairs of ranks."""
    width_bytes = code.times(blocks, BYTES)

    def pair(number: Any, _: list[Any]) -> list[Any]:
        at = code.times(code.product(number, width_bytes), 2)

        def block(index: Any, _: list[Any]) -> list[Any]:
            place = code.at(b, at, code.times(index, BYTES))
            rows = [code.load(CODES, row, align=2) for row in (place, code.at(place, width_bytes))]
            for t, both in enumerate(code.interleaved(*rows)):
                code.store(both, code.at(to, at, code.times(index, 2 * BYTES), t * BYTES))
            return []

        code.loop(blocks, [], block)
        return []

    code.loop(pairs, [], pair)


@njit
def _turn(a: Any, blocks: Any) -> None:
    """Write A (rank, pairs of inputs), each pair one number, as blocks of 16 ranks."""
    rank, pairs = a.shape
    for block in range(blocks.shape[0]):
        first = block * ROWS
        for pair in range(pairs):
            for r in range(min(ROWS, rank - first)):
                blocks[block, pair, r] = a[first + r, pair]


@njit
def _rounded(wide: Any, rank: Any, weight: Any, h: Any) -> None:
    """Write h (rows, ranks) times a weight as bfloat16, and zeros where there is no rank."""
    for row in range(wide.shape[0]):
        for r in range(rank):
            h[row, r] = narrow(wide[row, r] * weight, h[row, r])
        h[row, rank:] = 0


@njit
def _room(features: Any, outputs: Any, rank: Any) -> Any:
    """Return what `_add_many` writes to, aligned: A, B, h in float32 and bfloat16, products."""
    blocks, ranks = -(-rank // ROWS), _filled(rank)
    sizes = (
        blocks * ROWS * features // 2,
        ranks // 2 * outputs,
        READ_IN_TILES * blocks * ROWS,
        READ_IN_TILES * ranks,
    )
    buffer = np.empty(sum(sizes) + ROWS * WIDTH + LANES, np.float32)
    at = aligned(buffer)
    a, at = buffer[at : at + sizes[0]], at + sizes[0]
    b, at = buffer[at : at + sizes[1]], at + sizes[1]
    wide, at = buffer[at : at + sizes[2]], at + sizes[2]
    products, at = buffer[at : at + ROWS * WIDTH], at + ROWS * WIDTH
    return a.view(np.uint32), b.view(np.uint16), wide, buffer[at:].view(np.uint16), products


@njit
def _step(rank: Any) -> Any:
    """Return how many ranks are multiplied at once."""
    return 8 if rank <= 8 else 16 if rank <= 16 else 32


@njit
def _filled(rank: Any) -> Any:
    """Return the ranks of so many whole steps."""
    return -(-rank // _step(rank)) * _step(rank)


@njit
def _shapes(rows: Any, rank: Any) -> Any:
    """Return the shapes of all tiles for groups of so many rows."""
    shapes = whole_tiles()
    for tile in (*SUMS, GIVEN, HIDDEN):
        shapes[tile, 0] = rows
    shapes[HIDDEN, 1] = 2 * _step(rank)
    for tile in FACTORS:
        shapes[tile, 0] = _step(rank) // 2
    return shapes


@njit
def _add_many(x: Any, y: Any, rows: Any, row_bytes: Any, pair: Any, given: Any, room: Any) -> None:
    """Add what one factor pair makes of some rows.

    Args:
        x: Address of the first row of inputs.
        y: Of the first row of outputs.
        rows: How many.
        row_bytes: Of a row of x, and of one of y.
        pair: `FIELDS` of a table.
        given: A, each pair of inputs one number.
        room: For ranks up to the one that tiles are shaped for, and that rank.
    """
    (a, b, wide, h, products), most = room
    rank, begin, width, weight = pair[2], pair[3], pair[4], as_float(types.uint32(pair[5]))
    own, ranks, step = -(-rank // ROWS), _filled(most), _step(most)
    of_group = min(rows, ROWS)
    groups, before_last = -(-rows // ROWS), rows - of_group
    inputs = given.shape[1]
    _turn(given, a[: own * ROWS * inputs].reshape(own, inputs, ROWS))
    to = a.ctypes.data, own, inputs // ROWS, wide.ctypes.data
    _shrink_tiles((groups, before_last, x, row_bytes[0], *to))
    wide = wide[: groups * own * ROWS * ROWS].reshape(groups * ROWS, own * ROWS)
    _rounded(wide, rank, weight, h[: groups * ROWS * ranks].reshape(groups * ROWS, ranks))
    _pair_up((rank // 2, width // WIDTH, pair[1], b.ctypes.data))
    b[rank * width : ranks * width] = 0
    factors = b.ctypes.data, 4 * width, ranks // step, 2 * step, 2 * step * width
    results = y + 2 * begin, row_bytes[1], products.ctypes.data
    hidden = h.ctypes.data, 2 * ranks
    _expand_tiles((width // WIDTH, groups, of_group, before_last, *hidden, *factors, *results))


@Kernel.where(fits)
def add_tiles(pointer: Any) -> None:
    """Add what adapters make of rows, as `lora.add` calls it: in tiles those of prompts."""
    arguments = carray(integers(pointer), 9)
    count, features, outputs = arguments[1], arguments[4], arguments[5]
    most = arguments[8]
    units = table(arguments[6], (count, 5), pointer)
    row_bytes = 2 * features, 2 * outputs
    few, many = room_for(most), (_room(features, outputs, most), most)
    before, shaped = saved(), 0
    while True:
        unit = take(integers(pointer))
        if unit >= count:
            break
        x, y, rows, read, pairs = asked(arguments, units[unit], pointer)
        if read and min(rows, ROWS) != shaped:
            shaped = min(rows, ROWS)
            configure(_shapes(shaped, most))
        for pair in range(len(pairs)):
            rank = pairs[pair, 2]
            if not read:
                add_few(x, y, rows, row_bytes, pairs[pair], few)
            elif rank:
                a = elements(pairs[pair, 0], 0, (rank, features), pointer).view(np.uint32)
                _add_many(x, y, rows, row_bytes, pairs[pair], a, many)
    restore(before)
    keep(many)
    keep(few)
