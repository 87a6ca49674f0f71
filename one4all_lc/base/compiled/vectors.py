"""Instructions that Numba does not show: vectors of bfloat16 pairs, multiplied and added up.

Numba hands a piece of a kernel over to be written as LLVM's own code, by a function that takes a
`Code` and the arguments (int64: numbers and addresses). A processor with AVX512-BF16 multiplies 16
pairs of bfloat16 and adds both products of each to a float32, in one instruction.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from torch import Tensor

LANES, BYTES = 16, 64
"""float32 in a vector, and its bytes."""


class _BFloat(ir.types.HalfType):  # type: ignore[misc]
    """llvmlite knows no bfloat16."""

    def __str__(self) -> str:
        return "bfloat"

    _to_string = __str__


_BFloat._create_instance()  # else there would be HalfType's own

_WORD, _NUMBER = ir.IntType(32), ir.IntType(64)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
CODES = ir.VectorType(ir.IntType(16), 2 * LANES)
_WORDS = ir.VectorType(_WORD, LANES)

ZEROS = ir.Constant(FLOATS, [ir.Constant(ir.FloatType(), 0.0)] * LANES)


@cache
def multiplies_pairs() -> bool:
    """Whether this processor has the instruction, and Numba compiles for this processor."""
    told_otherwise = config.CPU_NAME or config.CPU_FEATURES
    return not told_otherwise and "+avx512bf16" in get_host_cpu_features().split(",")


def fits(dtype: torch.dtype) -> bool:
    """Whether kernels with such code run on tensors of this type."""
    return dtype == torch.bfloat16 and multiplies_pairs()


class Code:
    """Writes LLVM code where a kernel calls for it."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def number(self, value: int) -> Any:
        """Return an int64."""
        return ir.Constant(_NUMBER, value)

    def at(self, address: Any, *offsets: Any) -> Any:
        """Return an address so many bytes further: numbers, or values of the code."""
        for offset in offsets:
            value = self.number(offset) if isinstance(offset, int) else offset
            address = self.builder.add(address, value)
        return address

    def times(self, value: Any, factor: int) -> Any:
        """Return a multiple of an int64."""
        return self.builder.mul(value, self.number(factor))

    def load(self, kind: Any, address: Any, align: int = BYTES) -> Any:
        """Return what lies at an address, a multiple of `align`."""
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        return self.builder.load(pointer, align=align)

    def store(self, value: Any, address: Any, align: int = BYTES) -> None:
        """Put a value at an address, a multiple of `align`."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=align)

    def repeated(self, address: Any) -> Any:
        """Return the two bfloat16 at an address, 16 times."""
        word = self.load(_WORD, address, align=2)
        first, nothing = ir.Constant(_WORD, 0), ir.Constant(_WORDS, ir.Undefined)
        one = self.builder.insert_element(nothing, word, first)
        all_of_them = self.builder.shuffle_vector(
            one, nothing, ir.Constant(_WORDS, [first] * LANES)
        )
        return self.builder.bitcast(all_of_them, PAIRS)

    def dot(self, sums: Any, a: Any, b: Any) -> Any:
        """Add both products of each pair to sums."""
        return self._call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums, a, b)

    def scaled(self, sums: Any, a: Any, b: Any) -> Any:
        """Add a times b to sums, float32 all."""
        return self._call("llvm.fma.v16f32", FLOATS, a, b, sums)

    def interleaved(self, a: Any, b: Any) -> list[Any]:
        """Return the pairs of two rows of 32 bfloat16, as two vectors."""
        order = [place for i in range(2 * LANES) for place in (i, i + 2 * LANES)]
        halves = (order[: 2 * LANES], order[2 * LANES :])
        places = [[ir.Constant(_WORD, place) for place in half] for half in halves]
        kind = ir.VectorType(_WORD, 2 * LANES)
        return [
            self.builder.bitcast(self.builder.shuffle_vector(a, b, ir.Constant(kind, half)), PAIRS)
            for half in places
        ]

    def total(self, sums: Any) -> Any:
        """Return the sum of a vector's 16 float32."""
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), FLOATS])
        function = self.builder.module.declare_intrinsic("llvm.vector.reduce.fadd.v16f32", (), kind)
        zero = ir.Constant(ir.FloatType(), 0.0)
        return self.builder.call(function, [zero, sums], fastmath=("reassoc",))

    def widened(self, codes: Any) -> list[Any]:
        """Return 32 bfloat16 as two vectors of float32."""
        by = ir.Constant(_WORDS, [ir.Constant(_WORD, 16)] * LANES)
        return [
            self.builder.bitcast(self.builder.shl(self.builder.zext(half, _WORDS), by), FLOATS)
            for half in (self._part(codes, 0), self._part(codes, LANES))
        ]

    def rounded(self, low: Any, high: Any) -> Any:
        """Return two vectors of float32 as 32 bfloat16, rounded to nearest even."""
        places = [ir.Constant(_WORD, place) for place in range(2 * LANES)]
        kind = ir.VectorType(_WORD, 2 * LANES)
        both = self.builder.shuffle_vector(low, high, ir.Constant(kind, places))
        return self.builder.fptrunc(both, PAIRS)

    def added(self, a: Any, b: Any) -> Any:
        """Return the sum of two vectors of float32."""
        return self.builder.fadd(a, b)

    def _part(self, codes: Any, first: int) -> Any:
        places = [ir.Constant(_WORD, first + i) for i in range(LANES)]
        return self.builder.shuffle_vector(codes, codes, ir.Constant(_WORDS, places))

    def looked_up(self, codes: Any, shift: int, values: Sequence[int]) -> Any:
        """Return the bfloat16 that the four bits after `shift` of each code stand for.

        Args:
            codes: 32 of 16 bits.
            shift: Bits before those that are meant.
            values: The bits of 16 bfloat16.
        """
        # The instruction reads five bits: the fifth may be anything if the table is there twice.
        word = ir.IntType(16)
        table = ir.Constant(CODES, [ir.Constant(word, value) for value in (*values, *values)])
        if shift:
            by = ir.Constant(CODES, [ir.Constant(word, shift)] * 2 * LANES)
            codes = self.builder.lshr(codes, by)
        found = self._call("llvm.x86.avx512.permvar.hi.512", CODES, table, codes)
        return self.builder.bitcast(found, PAIRS)

    def fetch(self, address: Any) -> None:
        """Ask for what lies at an address to be brought nearer; it need not be memory."""
        kinds = [ir.IntType(8).as_pointer(), _WORD, _WORD, _WORD]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        function = self.builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
        read, keep, data = (ir.Constant(_WORD, value) for value in (0, 3, 1))
        self.builder.call(function, [self._pointer(address), read, keep, data])

    def product(self, a: Any, b: Any) -> Any:
        """Return the product of two int64."""
        return self.builder.mul(a, b)

    def difference(self, a: Any, b: Any) -> Any:
        """Return a less b, int64 both."""
        return self.builder.sub(a, b)

    def least(self, a: Any, b: Any) -> Any:
        """Return the smaller of two int64."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def configure_tiles(self, address: Any) -> None:
        """Set the shapes of all tiles as the 64 bytes at an address say."""
        self._call("llvm.x86.ldtilecfg", ir.VoidType(), self._pointer(address))

    def save_tiles(self, address: Any) -> None:
        """Write how tiles are configured to an address."""
        self._call("llvm.x86.sttilecfg", ir.VoidType(), self._pointer(address))

    def load_tile(self, tile: int, address: Any, stride: Any) -> None:
        """Fill a tile with rows that lie so many bytes apart."""
        self._tile("tileloadd64", tile, self._pointer(address), stride)

    def store_tile(self, tile: int, address: Any, stride: Any) -> None:
        """Write a tile's rows, so many bytes apart."""
        self._tile("tilestored64", tile, self._pointer(address), stride)

    def clear_tile(self, tile: int) -> None:
        """Set a tile to zero."""
        self._tile("tilezero", tile)

    def dot_tiles(self, sums: int, rows: int, pairs: int) -> None:
        """Add to a tile of float32 the products of a tile of rows with one of pairs."""
        self._tile("tdpbf16ps", sums, self._tile_number(rows), self._tile_number(pairs))

    def loop(
        self, count: Any, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Write a loop, of one round at least.

        Args:
            count: Rounds.
            carried: Vectors that each round gets from the one before it.
            body: Writes a round, given its number and what is carried; returns what to carry on.

        Returns:
            What the last round carries on.
        """
        builder, before = self.builder, self.builder.block
        head, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(head)
        builder.position_at_end(head)
        index, *values = (builder.phi(start.type) for start in (self.number(0), *carried))
        news = list(body(index, list(values)))
        following = builder.add(index, self.number(1))
        starts = (self.number(0), *carried)
        for phi, start, new in zip((index, *values), starts, (following, *news), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(new, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), head, after)
        builder.position_at_end(after)
        return news

    def either(self, value: Any, bodies: dict[int, Callable[[], None]]) -> None:
        """Write code for each value that a number may have; for others there is none."""
        after = self.builder.append_basic_block()
        switch = self.builder.switch(value, after)
        for case, body in bodies.items():
            block = self.builder.append_basic_block()
            switch.add_case(self.number(case), block)
            self.builder.position_at_end(block)
            body()
            self.builder.branch(after)
        self.builder.position_at_end(after)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, ir.IntType(8).as_pointer())

    def _tile_number(self, tile: int) -> Any:
        return ir.Constant(ir.IntType(8), tile)

    def _tile(self, name: str, tile: int, *arguments: Any) -> None:
        self._call(f"llvm.x86.{name}", ir.VoidType(), self._tile_number(tile), *arguments)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.builder.module.declare_intrinsic(name, (), kind)
        return self.builder.call(function, arguments)


def written(function: Callable[..., None]) -> Any:
    """Make a function that writes code callable in kernels, with a tuple of its arguments."""

    @intrinsic
    def call(_: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function(Code(builder), *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(arguments), generate

    return call


@intrinsic
def keep(_: Any, array: Any) -> Any:
    """Keep an array in memory up to here: Numba frees what only an address is left of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), generate


@written
def write_rounded(code: Code, sums: Any, y: Any, rows: Any, row_bytes: Any) -> None:
    """Write rows of 32 sums, which lie together, as bfloat16 so many bytes apart."""

    def row(number: Any, _: list[Any]) -> list[Any]:
        at = code.at(sums, code.times(number, 2 * BYTES))
        halves = (code.load(FLOATS, at), code.load(FLOATS, code.at(at, BYTES)))
        place = code.at(y, code.product(number, row_bytes))
        code.store(code.rounded(*halves), place, align=2)
        return []

    code.loop(rows, [], row)


@njit(inline="always")
def aligned(buffer: Any) -> Any:
    """Return the index of the first element of a float32 buffer at a multiple of `BYTES`."""
    return (-buffer.ctypes.data % BYTES) // 4


def aligned_copy(whole: Tensor) -> Tensor:
    """Return a copy of a flat tensor that begins at a multiple of `BYTES`."""
    room = whole.new_empty(len(whole) + BYTES // whole.itemsize)
    return room[-room.data_ptr() % BYTES // whole.itemsize :][: len(whole)].copy_(whole)
