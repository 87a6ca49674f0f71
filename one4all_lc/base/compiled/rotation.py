"""Rotary position embeddings: the halves of every head turned by the angles of its position."""

from typing import Any

from numba import carray, njit
from torch import Tensor

from one4all_lc.base.compiled.elements import ALONE, FAST, elements, integers, narrow, take, widen
from one4all_lc.base.compiled.kernel import Kernel


@njit(fastmath=FAST)
def _turn(x: Any, y: Any, cosine: Any, sine: Any) -> None:
    half = x.shape[0] // 2
    for i in range(half):
        low, high = widen(x[i]), widen(x[half + i])
        y[i] = narrow(low * widen(cosine[i]) - high * widen(sine[i]), x[i])
        y[half + i] = narrow(high * widen(cosine[half + i]) + low * widen(sine[half + i]), x[i])


@Kernel
def _rotate(pointer: Any) -> None:
    arguments = carray(integers(pointer), 10)
    tokens, heads, size = arguments[1], arguments[6], arguments[7]
    while True:
        token = take(integers(pointer))
        if token >= tokens:
            break
        cosine = elements(arguments[4], token * size, size, pointer)
        sine = elements(arguments[5], token * size, size, pointer)
        for head in range(heads):
            x = elements(arguments[2], token * arguments[8] + head * arguments[9], size, pointer)
            y = elements(arguments[3], (token * heads + head) * size, size, pointer)
            _turn(x, y, cosine, sine)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the heads of tokens.

    Args:
        x: Shape (1, heads, tokens, size), with the elements of a head side by side.
        cosine: Shape (1, tokens, size).
        sine: The same.

    Returns:
        Shape (1, heads, tokens, size), the heads of a token side by side.
    """
    _, heads, tokens, size = x.shape
    turned = x.new_empty(tokens, heads, size)
    _rotate(
        x.dtype,
        tokens,
        x.data_ptr(),
        turned.data_ptr(),
        cosine.data_ptr(),
        sine.data_ptr(),
        heads,
        size,
        x.stride(2),
        x.stride(1),
        parallel=tokens > ALONE,
    )
    return turned.transpose(0, 1)[None]
