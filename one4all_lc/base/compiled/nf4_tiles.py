"""Products with NF4 weights on a processor with AMX.

A block's codes are turned into tiles, and 16 rows are a tile as they lie: one instruction
multiplies both. Of fewer rows each tile has as many; of more, the last 16 are a tile that may
overlap the one before it. Every row goes through the same sums.
"""

from typing import Any

import numpy as np
from numba import carray

from one4all_lc.base.compiled.elements import integers, take
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.nf4_layout import (
    BLOCK,
    BLOCK_BYTES,
    CODE_BYTES,
    OUTPUTS,
    PAIR_BYTES,
    STEP_BYTES,
    VECTORS,
    turn,
)
from one4all_lc.base.compiled.tiles import ROWS, configure, fits, of_rows, restore, saved
from one4all_lc.base.compiled.vectors import (
    BYTES,
    FLOATS,
    Code,
    aligned,
    keep,
    write_rounded,
    written,
)

SUMS, GIVEN, WEIGHTS = (0, 1), (2, 3), ((4, 5), (6, 7))
"""Tiles: a group's sums with 16 outputs each; its rows' inputs, half of a block each; and for both
halves 32 inputs' weights of 16 outputs."""

HALF_BYTES = PAIR_BYTES // len(WEIGHTS)


@written
def _multiply_block(
    code: Code, x: Any, stride: Any, groups: Any, rows: Any, *arguments: Any
) -> None:
    """Multiply groups of rows with one block, and add to their totals.

    Args:
        code: Writes.
        x: The first row's inputs of the block.
        stride: Bytes from row to row.
        groups: How many.
        rows: Of a group.
        *arguments: How many rows lie before the last group; addresses of the block as pairs, of its
            scales, of room for a group's products, and of the totals.
    """
    before_last, pairs, scales, products, totals = arguments
    for half, tiles in enumerate(WEIGHTS):
        for t, tile in enumerate(tiles):
            place = code.at(pairs, half * HALF_BYTES + t * BYTES)
            code.load_tile(tile, place, code.number(STEP_BYTES))
    factors = [code.load(FLOATS, code.at(scales, t * BYTES)) for t in range(VECTORS)]
    whole_group = code.number(ROWS)

    def group(index: Any, _: list[Any]) -> list[Any]:
        first = code.least(code.product(index, whole_group), before_last)
        given = code.at(x, code.product(first, stride))
        for half, tile in enumerate(GIVEN):
            code.load_tile(tile, code.at(given, half * BYTES), stride)
        for t, tile in enumerate(SUMS):
            code.clear_tile(tile)
            for half, tiles in enumerate(WEIGHTS):
                code.dot_tiles(tile, GIVEN[half], tiles[t])
            code.store_tile(tile, code.at(products, t * BYTES), code.number(VECTORS * BYTES))
        into = code.at(totals, code.times(index, ROWS * OUTPUTS * 4))

        def row(number: Any, _: list[Any]) -> list[Any]:
            for t in range(VECTORS):
                offset = code.at(code.times(number, VECTORS * BYTES), t * BYTES)
                place = code.at(into, offset)
                product = code.load(FLOATS, code.at(products, offset))
                code.store(code.scaled(code.load(FLOATS, place), product, factors[t]), place)
            return []

        code.loop(rows, [], row)
        return []

    code.loop(groups, [], group)


@Kernel.where(fits, early=False)
def multiply_tiles(pointer: Any) -> None:
    """Multiply rows with units, as `nf4.multiply` calls it."""
    arguments = carray(integers(pointer), 8)
    units, rows, features, outputs = arguments[1], arguments[2], arguments[3], arguments[4]
    x, weight, y = arguments[5], arguments[6], arguments[7]
    blocks = features // BLOCK
    groups, of_group = (rows + ROWS - 1) // ROWS, min(rows, ROWS)
    turned, products = PAIR_BYTES // 4, ROWS * OUTPUTS
    buffer = np.zeros(turned + products + groups * products + BYTES // 4, np.float32)
    first = aligned(buffer)
    totals = buffer[first + turned + products :]
    pairs = buffer.ctypes.data + 4 * first
    to_products = pairs + 4 * turned
    to_totals = to_products + 4 * products
    before = saved()
    configure(of_rows(of_group, len(SUMS) + len(GIVEN)))
    while True:
        unit = take(integers(pointer))
        if unit >= units:
            break
        totals[: groups * products] = 0
        for block in range(blocks):
            at = weight + (unit * blocks + block) * BLOCK_BYTES
            turn((at, pairs))
            inputs, scales = x + 2 * block * BLOCK, at + CODE_BYTES
            places = (pairs, scales, to_products, to_totals)
            _multiply_block((inputs, 2 * features, groups, of_group, rows - of_group, *places))
        for group in range(groups):
            row = min(group * ROWS, rows - of_group)
            place = y + 2 * (row * outputs + unit * OUTPUTS)
            of_sums = to_totals + 4 * group * products
            write_rounded((of_sums, place, of_group, 2 * outputs))
    restore(before)
    keep(buffer)
