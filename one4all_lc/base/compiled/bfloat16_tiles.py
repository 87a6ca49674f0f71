"""Products with bfloat16 weights on a processor with AMX.

A weight lies in memory as tiles read it: units of 32 outputs, in them

    pairs   (in / 2 pairs, 2 vectors, 16 outputs, 2 inputs) of bfloat16

Sixteen rows are a tile as they lie, and two such tiles are multiplied with a unit at once. Of fewer
rows each tile has as many; of more, the last tiles may overlap those before them. Every row goes
through the same sums.
"""

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from one4all_lc.base.compiled.elements import integers, take
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.tiles import (
    ROWS,
    configure,
    fits,
    multiplies_tiles,
    of_rows,
    restore,
    saved,
)
from one4all_lc.base.compiled.vectors import (
    BYTES,
    Code,
    aligned,
    aligned_copy,
    keep,
    write_rounded,
    written,
)

OUTPUTS, INPUTS = 32, 32
"""Outputs of a unit of work; inputs of a tile."""

VECTORS = 2
PAIRS_BYTES = VECTORS * BYTES
"""Of one pair of inputs, for all outputs of a unit."""

SUMS, GIVEN, WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)
"""Tiles: for both tiles of rows the sums with 16 outputs each; their inputs; weights."""


def _sum_up(code: Code, count: int, steps: Any, weight: Any, stride: Any, *places: Any) -> None:
    """Write the products of so many tiles of rows with a unit."""
    bias, sums, rows = places[0], places[1], places[2 : 2 + count]
    for i in range(count):
        for t, tile in enumerate(SUMS[i]):  # every row begins with the same 64 bytes
            code.load_tile(tile, code.at(bias, t * BYTES), code.number(0))

    def step(number: Any, _: list[Any]) -> list[Any]:
        at = code.at(weight, code.times(number, INPUTS // 2 * PAIRS_BYTES))
        for t, tile in enumerate(WEIGHTS):
            code.load_tile(tile, code.at(at, t * BYTES), code.number(PAIRS_BYTES))
        for i, row in enumerate(rows):
            code.load_tile(GIVEN[i], code.at(row, code.times(number, 2 * INPUTS)), stride)
            for t, tile in enumerate(WEIGHTS):
                code.dot_tiles(SUMS[i][t], GIVEN[i], tile)
        return []

    code.loop(steps, [], step)
    for i in range(count):
        for t, tile in enumerate(SUMS[i]):
            place = code.at(sums, (i * ROWS * VECTORS + t) * BYTES)
            code.store_tile(tile, place, code.number(VECTORS * BYTES))


@written
def _multiply_group(code: Code, count: Any, *arguments: Any) -> None:
    """Multiply one tile of rows or two: steps, weight, stride, bias, sums, where tiles begin."""
    code.either(count, {n: lambda n=n: _sum_up(code, n, *arguments) for n in (1, 2)})  # type: ignore[misc]


@Kernel.where(fits, early=False)
def _multiply(pointer: Any) -> None:
    arguments = carray(integers(pointer), 9)
    units, rows, features, outputs = arguments[1], arguments[2], arguments[3], arguments[4]
    x, weight, bias, y = arguments[5], arguments[6], arguments[7], arguments[8]
    tiles, of_tile = (rows + ROWS - 1) // ROWS, min(rows, ROWS)
    last, stride = rows - of_tile, 2 * features
    buffer = np.zeros(2 * ROWS * OUTPUTS + BYTES // 4, np.float32)
    to_sums = buffer.ctypes.data + 4 * aligned(buffer)
    before = saved()
    configure(of_rows(of_tile, len(GIVEN) + len(SUMS) * VECTORS))
    while True:
        unit = take(integers(pointer))
        if unit >= units:
            break
        of_unit = weight + unit * 2 * OUTPUTS * features
        for tile in range(0, tiles, 2):
            count = min(2, tiles - tile)
            first = min(tile * ROWS, last)
            second = min(first + ROWS, last)
            of_bias = bias + 4 * unit * OUTPUTS
            places = (of_bias, to_sums, x + first * stride, x + second * stride)
            _multiply_group((count, features // INPUTS, of_unit, stride, *places))
            for i in range(count):
                row = second if i else first
                place = y + 2 * (row * outputs + unit * OUTPUTS)
                write_rounded((to_sums + i * 4 * ROWS * OUTPUTS, place, of_tile, 2 * outputs))
    restore(before)
    keep(buffer)


def runs(outputs: int, features: int) -> bool:
    """Whether weights of this shape can be multiplied here."""
    return outputs % OUTPUTS == 0 and features % INPUTS == 0 and multiplies_tiles()


def packed(weight: Tensor) -> Tensor:
    """Lay a weight (outputs, inputs) out as it is read, from a multiple of `BYTES` on."""
    outputs, features = weight.shape
    split = weight.reshape(outputs // OUTPUTS, VECTORS, -1, features // 2, 2)
    return aligned_copy(split.permute(0, 3, 1, 2, 4).flatten())


def multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map (rows, inputs) to (rows, outputs), bfloat16 both.

    Args:
        x: Contiguous.
        weight: As `packed` lays it out.
        bias: Shape (outputs,), float32.
    """
    (rows, features), outputs = x.shape, len(bias)
    y = x.new_empty(rows, outputs)
    if not rows:
        return y  # the kernels' loops go round once at least
    _multiply(
        x.dtype,
        outputs // OUTPUTS,
        rows,
        features,
        outputs,
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
    )
    return y
