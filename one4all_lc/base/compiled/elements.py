"""What Numba lacks: bfloat16, memory at an address, a counter that threads share.

A kernel takes one pointer, to its arguments, which are int64. The pointer's type says of which type
the tensors are that the arguments point to: uint16 stands for bfloat16, since Numba has none.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

ALONE = 8
"""Tokens whose heads one thread does sooner than it wakes others."""

FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be vectorised: their order is fixed when a kernel is compiled. NaN stays NaN."""


@intrinsic
def integers(_: Any, pointer: Any) -> Any:
    """Return the pointer to the arguments as one to int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return builder.bitcast(arguments[0], kind)

    return types.CPointer(types.int64)(pointer), generate


@intrinsic
def _at(_: Any, address: Any, pointer: Any) -> Any:
    """Return an address as a pointer of the type of another one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(types.int64, pointer), generate


@intrinsic
def _element_bytes(_: Any, pointer: Any) -> Any:
    """Return the size of what a pointer points to."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = context.get_abi_sizeof(context.get_value_type(pointer.dtype))
        return context.get_constant(types.int64, size)

    return types.int64(pointer), generate


@njit(inline="always")
def elements(address: Any, offset: Any, shape: Any, pointer: Any) -> Any:
    """Return the array that begins so many elements after an address."""
    return carray(_at(address + offset * _element_bytes(pointer), pointer), shape)


@njit(inline="always")
def table(address: Any, shape: Any, pointer: Any) -> Any:
    """Return the array of int64 at an address."""
    return carray(_at(address, integers(pointer)), shape)


@intrinsic
def take(_: Any, counter: Any) -> Any:
    """Return an int64 and add one to it, as one operation for all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", arguments[0], one, "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def as_float(_: Any, bits: Any) -> Any:
    """Return the float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_bits(_: Any, number: Any) -> Any:
    """Return the 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def widen(element: Any) -> Any:
    """Return an element as float32."""
    raise NotImplementedError


@overload(widen, inline="always", strict=False)
def _widen(element: Any) -> Any:
    if element == types.uint16:
        return lambda element: as_float(types.uint32(element) << types.uint32(16))
    return lambda element: element


def narrow(number: Any, like: Any) -> Any:
    """Return a float32 as an element of the type of another one, rounded to nearest even."""
    raise NotImplementedError


@overload(narrow, inline="always", strict=False)
def _narrow(number: Any, like: Any) -> Any:
    if like == types.uint16:
        return lambda number, like: _rounded(number)
    return lambda number, like: number


@njit(inline="always")
def _rounded(number: Any) -> Any:
    bits = as_bits(number)
    even = (bits >> types.uint32(16)) & types.uint32(1)
    return types.uint16((bits + types.uint32(0x7FFF) + even) >> types.uint32(16))


@njit(inline="always")
def exponential(x: Any) -> Any:
    """Return e to the power of x, for x up to 0, by a polynomial that vectorises."""
    scaled = max(x * np.float32(1.4426950408889634), np.float32(-126))
    whole = np.floor(scaled + np.float32(0.5))
    f = (scaled - whole) * np.float32(0.6931471805599453)
    p = np.float32(1 / 120) + f * np.float32(1 / 720)
    p = np.float32(1 / 6) + f * (np.float32(1 / 24) + f * p)
    p = np.float32(1) + f * (np.float32(1) + f * (np.float32(0.5) + f * p))
    return p * as_float(types.uint32(types.int32(whole) + types.int32(127)) << types.uint32(23))
