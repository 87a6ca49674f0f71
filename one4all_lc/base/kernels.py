"""Products with frozen weights, laid out the fastest way that this machine has.

On a CPU a token that is decoded spends its time on reading weights, a prompt on multiplying. Our
kernel for NF4 is good at both, so where it runs there is one layout. Elsewhere there are two: int8
for decoding, and for prompts bfloat16 in oneDNN's own layout, or plain float32 where the processor
does not multiply bfloat16. Up to how many decoding rows int8 serves is measured with the base's own
weights when they are laid out.

All these kernels but plain float32 compute a row with the same bits whatever the number of rows.
Which one computes a token depends on whether the token is decoded or read, not on how many others
are: so a row's answer does not depend on its neighbours.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from one4all_lc.base.compiled import bfloat16_tiles
from one4all_lc.base.quantized import Nf4

ROWS = (1, 8, 32)
"""Numbers of decoding rows at which the two layouts are compared: measuring delays the start."""

EQUAL = 1.25
"""Small weights that take up to this share of the time still serve: a row then keeps its bits when
others join it."""


WHOLE = 16
"""torch's int8 kernel reads whole multiples of this width, and beyond the end of other inputs."""


class Product(Protocol):
    """A frozen weight of shape (out, in) and a way to multiply with it."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that the weight takes in this layout."""


class Dense:
    """torch's own product, for any device and type."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight.contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        return functional.linear(x, self._weight, self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight.nbytes


class OneDnn:
    """oneDNN's product of a bfloat16 weight in oneDNN's own layout.

    Many rows are multiplied a few at a time where oneDNN computes a row otherwise among many
    (Intel's AMX): a row must not depend on its company.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._bytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        most = steady_rows()
        if x.shape[0] <= most:
            return self.at_once(x)
        return torch.cat([self.at_once(part) for part in torch.split(x, most)])

    def at_once(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out) as oneDNN does."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._bytes


@functools.cache
@torch.inference_mode()
def steady_rows() -> int:
    """Return up to how many rows oneDNN computes each of them with the bits that it has alone."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 576, generator=draw).bfloat16()
    product = OneDnn(torch.randn(1536, 576, generator=draw).bfloat16()).at_once
    alone = torch.cat([product(row) for row in torch.split(x, 1)])

    def steady(rows: int) -> bool:
        return torch.equal(product(x[:rows]), alone[:rows])

    if all(map(steady, (*range(2, 64), 100, 128, 256))):
        return sys.maxsize
    return next(most for most in (32, 16, 8, 4, 2, 1) if all(map(steady, range(1, most + 1))))


class Tiles:
    """Our own product of a bfloat16 weight, for processors with AMX."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = bfloat16_tiles.packed(weight)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.float()
        self._features = weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        if x.shape[1] != self._features:  # the kernel reads what it is told to
            msg = f"a weight of {self._features} inputs is given {x.shape[1]}"
            raise IndexError(msg)
        return bfloat16_tiles.multiply(x.contiguous(), self._weight, self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight.nbytes


class Int8:
    """torch's product of few rows with int8 weights.

    Args:
        weight: Shape (out, in), int8; `in` is a multiple of WHOLE.
        scales: What each output is multiplied with, shape (out,).
        bias: Shape (out,).
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._scales, self._bias = weight, scales, bias

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round a weight of shape (out, in), one scale for each output."""
        scales = weight.float().abs().amax(1).clamp(min=1e-30) / 127
        rounded = (weight.float() / scales[:, None]).round().to(torch.int8)
        return cls(rounded, scales.to(weight.dtype), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        product = torch._weight_int8pack_mm(x, self._weight, self._scales)
        return product if self._bias is None else product.add_(self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight.nbytes + self._scales.nbytes


@dataclass(eq=False)
class Kernels:
    """How products are computed on this machine.

    Attributes:
        layout: Of weights: `nf4` for what the base holds as NF4, else `onednn`, `dense`, or `own`
            for the base's linear layers as they were loaded (CUDA, where bitsandbytes computes).
        dtype: Type of the hidden states.
        small: Whether weights are laid out a second time, as int8, for decoding.
        small_rows: Up to so many decoding rows those serve.
    """

    layout: str
    dtype: torch.dtype
    small: bool = False
    small_rows: int = 0

    def lay_out(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """Lay out a weight of shape (out, in) that is not quantized, without rounding it."""
        if self.layout not in ("nf4", "onednn") or weight.dtype != torch.bfloat16:
            return Dense(weight, bias)
        return (Tiles if bfloat16_tiles.runs(*weight.shape) else OneDnn)(weight, bias)

    def lay_out_quantized(
        self, weight: Tensor, bias: Tensor | None = None
    ) -> tuple[Product, Product | None]:
        """Lay out a weight of the base's quantized layers, shape (out, in).

        What is NF4 already is not rounded again.

        Returns:
            The weight for prompts, and one for decoding if that has its own.
        """
        packed = Nf4.of(weight, bias) if self.layout == "nf4" else None
        if packed is not None:
            return packed, None
        return self.lay_out(weight, bias), Int8.of(weight, bias) if self.small else None

    def __str__(self) -> str:
        words = _WORDS[self.layout]
        if not self.small_rows:
            return words
        return f"{words}; int8 weights for up to {self.small_rows} decoding rows"


_WORDS = {
    "nf4": "NF4 weights in a layout of our own",
    "onednn": "bfloat16 weights in oneDNN's layout",
    "dense": "plain products",
    "own": "the base's own products",
}


def find_kernels(
    dtype: torch.dtype,
    device: torch.device,
    widths: Collection[int],
    *,
    quantization: str,
) -> Kernels:
    """Find which layouts this machine computes with.

    Args:
        dtype: Type of the hidden states.
        device: Where they are.
        widths: Of the inputs of the base's linear layers.
        quantization: Of the base.
    """
    if device.type != "cpu":
        return Kernels("dense" if quantization == "none" else "own", dtype)
    layout = "dense"
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        runs = quantization == "nf4" and Nf4.of(torch.ones(64, 64, dtype=dtype)) is not None
        layout = "nf4" if runs else "onednn"
    small = quantization != "none" and all(width % WHOLE == 0 for width in widths)
    return Kernels(layout, dtype, small)


@torch.inference_mode()
def small_rows(
    small: Sequence[Product],
    large: Sequence[Product],
    features: Sequence[int],
    dtype: torch.dtype,
) -> int:
    """Return up to how many decoding rows small weights are as fast as large ones.

    Args:
        small: All products of the base: together they are more than the processor's caches hold,
            as in a forward.
        large: The same in the layout for prompts.
        features: The width of each product's input.
        dtype: Type of the hidden states.
    """
    found = 0
    for rows in ROWS:
        inputs = {size: torch.ones(rows, size, dtype=dtype) for size in set(features)}
        xs = [inputs[size] for size in features]
        if seconds(small, xs, runs=2) > EQUAL * seconds(large, xs, runs=2):
            break
        found = rows
    return found


def seconds(
    products: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor], runs: int
) -> float:
    """Return the median time of computing all products one after another."""
    times = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        for product, x in zip(products, inputs, strict=True):
            product(x)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
