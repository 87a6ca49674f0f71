"""Products with frozen weights, laid out the fastest way that this machine has.

On a CPU a token that is decoded spends its time on reading weights, so for decoding they are small:
NF4 in bitsandbytes' packed layout where its kernel runs, else int8. A prompt spends it on
multiplying, so there they are bfloat16 in oneDNN's own layout, or plain float32 where the processor
does not multiply bfloat16. Up to how many decoding rows the small weights serve is measured with
the base's own when they are laid out.

All these kernels but plain float32 compute a row with the same bits whatever the number of rows.
Which one computes a token depends on whether the token is decoded or read, not on how many others
are: so a row's answer does not depend on its neighbours.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from one4all_lc.base.quantized import PackedNf4

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
    """oneDNN's product of a bfloat16 weight in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._bytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._bytes


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
        rounded, scales = _rounded(weight, 1)
        return cls(rounded, scales.to(weight.dtype), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        product = torch._weight_int8pack_mm(x, self._weight, self._scales)
        return product if self._bias is None else product.add_(self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weight."""
        return self._weight.nbytes + self._scales.nbytes


def _rounded(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Round to int8 with one scale for each slice along `axis`."""
    scales = weight.float().abs().amax(axis).clamp(min=1e-30) / 127
    return (weight.float() / scales.unsqueeze(axis)).round().to(torch.int8), scales


@dataclass(frozen=True, eq=False)
class LoraPair:
    """A and B of adapters, laid out: y + expand(shrink(x))."""

    shrink: Product
    expand: Product

    @classmethod
    def int8(cls, a: Tensor, b: Tensor) -> Self:
        """Round A of shape (R, in) and B of shape (out, R).

        Each of the R ranks has scales of its own, B's included, which A's take along: so what an
        adapter is rounded to does not depend on those that lie beside it.
        """
        rounded_a, scales_a = _rounded(a, 1)
        rounded_b, scales_b = _rounded(b, 0)
        shrink = Int8(rounded_a, (scales_a * scales_b).to(a.dtype))
        return cls(shrink, Int8(rounded_b, torch.ones_like(b[:, 0])))


class LazyPair:
    """A and B of adapters for decoding, laid out when they are first needed.

    Args:
        kernels: How weights are laid out on this machine.
        factors: Returns A of shape (R, in) and B of shape (out, R).
        size: Elements of both.
    """

    def __init__(
        self, kernels: "Kernels", factors: Callable[[], tuple[Tensor, Tensor]], size: int
    ) -> None:
        self._kernels, self._factors, self._size = kernels, factors, size

    @functools.cached_property
    def made(self) -> LoraPair:
        """Both, laid out."""
        a, b = self._factors()
        if self._kernels.small:
            return LoraPair.int8(a, b)
        return LoraPair(Dense(a), Dense(b))

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take once they are made."""
        return self._size * (1 if self._kernels.small else self._kernels.dtype.itemsize)


@dataclass(eq=False)
class Kernels:
    """How products are computed on this machine.

    Attributes:
        layout: Of weights for prompts: `onednn`, `dense`, or `own` for the base's linear layers as
            they were loaded (CUDA, where bitsandbytes computes).
        dtype: Type of the hidden states.
        small: Of weights for decoding: `nf4`, `int8`, or empty where nothing is rounded for it.
        small_rows: Up to so many decoding rows those serve.
        rank_overhead: What two products cost besides their arithmetic, in tokens times rank of a
            LoRA term while decoding: the price of one segment more.
    """

    layout: str
    dtype: torch.dtype
    small: str = ""
    small_rows: int = 0
    rank_overhead: float = 0.0

    def lay_out(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """Lay out a weight of shape (out, in) without rounding it."""
        fits = self.layout == "onednn" and weight.dtype == torch.bfloat16
        return OneDnn(weight, bias) if fits else Dense(weight, bias)

    def lay_out_small(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """Lay out a weight of the base for decoding; what is NF4 already is not rounded again."""
        packed = PackedNf4.of(weight, bias) if self.small == "nf4" else None
        return packed or Int8.of(weight, bias)

    def __str__(self) -> str:
        words = _WORDS[self.layout]
        if not self.small_rows:
            return words
        return f"{words}; {self.small} weights for up to {self.small_rows} decoding rows"


_WORDS = {
    "onednn": "bfloat16 weights in oneDNN's layout",
    "dense": "plain products",
    "own": "the base's own products",
}


def find_kernels(
    dtype: torch.dtype,
    device: torch.device,
    shapes: Sequence[tuple[int, int]],
    *,
    quantization: str,
) -> Kernels:
    """Find which layouts this machine computes with, and what a LoRA term costs.

    Args:
        dtype: Type of the hidden states.
        device: Where they are.
        shapes: (out, in) of the weights that one layer of the base multiplies with.
        quantization: Of the base.
    """
    layout, small = "dense", ""
    if device.type == "cpu":
        if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            layout = "onednn"
        if quantization != "none" and all(width % WHOLE == 0 for _, width in shapes):
            runs = PackedNf4.of(torch.ones(32, 64, dtype=dtype)) is not None
            small = "nf4" if quantization == "nf4" and runs else "int8"
    elif quantization != "none":
        layout = "own"
    kernels = Kernels(layout, dtype, small)
    kernels.rank_overhead = _rank_overhead(kernels, device, shapes)
    return kernels


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
        if _seconds(small, xs, runs=2) > EQUAL * _seconds(large, xs, runs=2):
            break
        found = rows
    return found


@torch.inference_mode()
def _rank_overhead(
    kernels: Kernels, device: torch.device, shapes: Sequence[tuple[int, int]]
) -> float:
    """Return for how many tokens times rank two products' fixed cost would pay."""

    def seconds(tokens: int, rank: int) -> float:
        products: list[Product] = []
        inputs = []
        for out_features, in_features in shapes:
            a, b = (
                torch.full(size, 0.01, dtype=kernels.dtype, device=device)
                for size in ((rank, in_features), (out_features, rank))
            )
            pair = LazyPair(kernels, lambda a=a, b=b: (a, b), 0).made  # type: ignore[misc]
            products += [pair.shrink, pair.expand]
            inputs += [
                torch.ones(tokens, size, dtype=kernels.dtype, device=device)
                for size in (in_features, rank)
            ]
        return _seconds(products, inputs, runs=7)

    least, most = seconds(1, 16), seconds(32, 256)
    slope = (most - least) / (32 * 256 - 16)
    return least / max(slope, 1e-12)


def _seconds(products: Sequence[Product], inputs: Sequence[Tensor], runs: int) -> float:
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
