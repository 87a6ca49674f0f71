"""Products with NF4 weights, of the few rows that decode as of the many of a prompt.

One instruction multiplies 16 outputs' pairs of inputs. Up to `FEW` rows turn codes and multiply at
once; for more a block's codes are turned once, and kept. Each sum is made in the same order for any
number of rows. A processor with AMX multiplies tiles instead, whatever the number of rows.
"""

from typing import Any

import numpy as np
from numba import carray, njit
from torch import Tensor

from one4all_lc.base.compiled import nf4_tiles
from one4all_lc.base.compiled.elements import integers, take
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.compiled.nf4_layout import (
    AHEAD,
    BLOCK,
    BLOCK_BYTES,
    CODE_BYTES,
    INPUTS,
    OUTPUTS,
    PAIR_BYTES,
    STEP_BYTES,
    STEPS,
    VECTORS,
    turn,
    turned,
)
from one4all_lc.base.compiled.tiles import multiplies_tiles
from one4all_lc.base.compiled.vectors import (
    BYTES,
    CODES,
    FLOATS,
    PAIRS,
    ZEROS,
    Code,
    aligned,
    fits,
    keep,
    multiplies_pairs,
    write_rounded,
    written,
)

FEW, MOST = 8, 12
"""Rows for which codes are turned while they are multiplied; rows summed at once, at most."""


def _summed(code: Code, sums: list[Any], rows: list[Any], offset: Any, pairs: list[Any]) -> None:
    """Add to sums (rows x vectors) the products of each row's inputs at an offset with pairs."""
    for m, row in enumerate(rows):
        given = code.repeated(code.at(row, offset))
        for t, values in enumerate(pairs):
            index = m * len(pairs) + t
            sums[index] = code.dot(sums[index], given, values)


def _few(code: Code, rows: int, units: int, *arguments: Any) -> None:
    """Write the product of so many rows with so many units, codes turned on the way."""
    x, stride, weight, unit_bytes, blocks, totals = arguments
    given = [code.at(x, code.times(stride, m)) for m in range(rows)]
    vectors = [
        code.at(weight, code.times(unit_bytes, unit), t * BYTES)
        for unit in range(units)
        for t in range(VECTORS)
    ]
    count = len(vectors)

    def block(index: Any, whole: list[Any]) -> list[Any]:
        first = code.times(index, BLOCK_BYTES)

        def step(number: Any, sums: list[Any]) -> list[Any]:
            at = code.at(first, code.times(number, STEP_BYTES))
            codes = [code.load(CODES, code.at(vector, at)) for vector in vectors]
            for vector in vectors:
                code.fetch(code.at(vector, at, AHEAD))
            begin = code.at(code.times(index, 2 * BLOCK), code.times(number, 2 * INPUTS))
            for pair in range(INPUTS // 2):
                _summed(code, sums, given, code.at(begin, 4 * pair), turned(code, codes, pair))
            return sums

        sums = code.loop(code.number(STEPS), [ZEROS] * rows * count, step)
        scales = [code.load(FLOATS, code.at(vector, first, CODE_BYTES)) for vector in vectors]
        return [code.scaled(whole[i], sums[i], scales[i % count]) for i in range(rows * count)]

    for i, total in enumerate(code.loop(blocks, [ZEROS] * rows * count, block)):
        row, vector = divmod(i, count)
        unit, t = divmod(vector, VECTORS)
        code.store(total, code.at(totals, ((unit * rows + row) * VECTORS + t) * BYTES))


@written
def _few_rows(code: Code, rows: Any, *arguments: Any) -> None:
    """Multiply up to `FEW` rows with the units that `units_of` says."""
    code.either(
        rows,
        {n: lambda n=n: _few(code, n, units_of(n), *arguments) for n in range(1, FEW + 1)},  # type: ignore[misc]
    )


@njit(inline="always")
def units_of(rows: Any) -> Any:
    """Return how many units are computed together: more sums than one row has keep busy."""
    return 2 if rows <= 4 else 1


def _many(code: Code, rows: int, *arguments: Any) -> None:
    """Write the product of so many rows with one block."""
    x, stride, pairs, scales, totals = arguments
    given = [code.at(x, code.times(stride, m)) for m in range(rows)]

    def step(number: Any, sums: list[Any]) -> list[Any]:
        at = code.at(pairs, code.times(number, INPUTS // 2 * STEP_BYTES))
        for pair in range(INPUTS // 2):
            place = pair * STEP_BYTES
            values = [code.load(PAIRS, code.at(at, place, t * BYTES)) for t in range(VECTORS)]
            offset = code.at(code.times(number, 2 * INPUTS), 4 * pair)
            _summed(code, sums, given, offset, values)
        return sums

    sums = code.loop(code.number(STEPS), [ZEROS] * rows * VECTORS, step)
    factors = [code.load(FLOATS, code.at(scales, t * BYTES)) for t in range(VECTORS)]
    for i, value in enumerate(sums):
        place = code.at(totals, i * BYTES)
        whole = code.scaled(code.load(FLOATS, place), value, factors[i % VECTORS])
        code.store(whole, place)


@written
def _many_rows(code: Code, rows: Any, *arguments: Any) -> None:
    """Multiply rows, half of `MOST` at least, with one block, and add to their totals."""
    least = MOST // 2  # more than `FEW` rows are split evenly
    code.either(
        rows,
        {n: lambda n=n: _many(code, n, *arguments) for n in range(least, MOST + 1)},  # type: ignore[misc]
    )


@njit
def _unit(x: Any, weight: Any, rows: Any, features: Any, pairs: Any, totals: Any) -> None:
    """Set totals to the product of many rows with a unit, block by block."""
    for block in range(features // BLOCK):
        at = weight + block * BLOCK_BYTES
        turn((at, pairs))
        done, groups = 0, (rows + MOST - 1) // MOST
        while groups:
            n = (rows - done + groups - 1) // groups
            given = x + 2 * (done * features + block * BLOCK)
            place = totals + done * OUTPUTS * 4
            _many_rows((n, given, 2 * features, pairs, at + CODE_BYTES, place))
            done, groups = done + n, groups - 1


@Kernel.where(fits, early=False)
def _multiply(pointer: Any) -> None:
    arguments = carray(integers(pointer), 8)
    count, rows, features, outputs = arguments[1], arguments[2], arguments[3], arguments[4]
    x, weight, y = arguments[5], arguments[6], arguments[7]
    blocks = features // BLOCK
    unit_bytes = blocks * BLOCK_BYTES
    turned = PAIR_BYTES // 4
    buffer = np.zeros(turned + max(rows, 2 * FEW) * OUTPUTS + BYTES // 4, np.float32)
    pairs = aligned(buffer)
    totals = buffer[pairs + turned :]
    to_pairs = buffer.ctypes.data + 4 * pairs
    to_totals = to_pairs + 4 * turned
    while True:
        taken = take(integers(pointer))
        if taken >= count:
            break
        if rows <= FEW:
            units = units_of(rows)
            # Of an odd number the last but one is computed twice, to the same bits.
            first = min(taken * units, outputs // OUTPUTS - units)
            place = weight + first * unit_bytes
            _few_rows((rows, x, 2 * features, place, unit_bytes, blocks, to_totals))
            for i in range(units):
                sums, own = to_totals + i * rows * VECTORS * BYTES, first + i
                write_rounded((sums, y + 2 * own * OUTPUTS, rows, 2 * outputs))
        else:
            totals[: rows * OUTPUTS] = 0
            _unit(x, weight + taken * unit_bytes, rows, features, to_pairs, to_totals)
            write_rounded((to_totals, y + 2 * taken * OUTPUTS, rows, 2 * outputs))
    keep(buffer)


def runs(outputs: int, features: int) -> bool:
    """Whether weights of this shape can be multiplied here."""
    fit = outputs % OUTPUTS == 0 and outputs >= 2 * OUTPUTS and features % BLOCK == 0
    return fit and multiplies_pairs()


def multiply(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """Map (rows, inputs) to (rows, outputs), bfloat16 both.

    Args:
        x: Contiguous.
        weight: As `packed` lays it out.
        outputs: Of the weight.
    """
    rows, features = x.shape
    y = x.new_empty(rows, outputs)
    if not rows:
        return y  # the kernels' loops go round once at least
    given = (rows, features, outputs, x.data_ptr(), weight.data_ptr(), y.data_ptr())
    units = outputs // OUTPUTS
    if multiplies_tiles():
        nf4_tiles.multiply_tiles(x.dtype, units, *given)
    else:
        count = -(-units // units_of.py_func(rows)) if rows <= FEW else units
        _multiply(x.dtype, count, *given)
    return y
