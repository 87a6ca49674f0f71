"""bitsandbytes' weights: out of the layers that it made, and into its kernel for few rows on a CPU.

The only module that imports bitsandbytes.
"""

import ctypes
from typing import Any, Self

import torch
from torch import Tensor, nn

_BLOCK = 64


def dense_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Return the weight that a linear layer computes with, shape (out, in), not quantized."""
    import bitsandbytes
    from bitsandbytes import functional

    weight: Any = layer.weight
    dense: Tensor = weight.data
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        dense = functional.dequantize_4bit(weight.data, weight.quant_state)
    elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        dense = (weight.CB if weight.CB is not None else weight.data) * (scales[:, None] / 127)
    return dense.to(dtype)


class PackedNf4:
    """An NF4 weight in the layout of bitsandbytes' kernel for processors with AVX512-BF16.

    bitsandbytes' own way to this kernel spends longer in Python than the kernel takes for one row
    of a small layer, so it is called directly.
    """

    def __init__(self, packed: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
        self._weight, self._absmax, self._bias = packed, absmax, bias
        out_features, half = packed.shape
        self._out = out_features
        self._shape = (ctypes.c_int64(out_features), ctypes.c_int64(2 * half))
        self._kernel = _kernel()
        self._pointers = (ctypes.c_void_p(packed.data_ptr()), ctypes.c_void_p(absmax.data_ptr()))

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self | None:
        """Quantize a weight whose values are NF4's already; None where the kernel does not run.

        Args:
            weight: Shape (out, in).
            bias: Shape (out,).
        """
        out_features, in_features = weight.shape
        fits = out_features % 32 == 0 and in_features % _BLOCK == 0
        if not fits or weight.dtype != torch.bfloat16 or _kernel() is None:
            return None
        from bitsandbytes import functional

        quantized, state = functional.quantize_4bit(
            weight, blocksize=_BLOCK, quant_type="nf4", compress_statistics=False
        )
        packed, state = functional._convert_weight_packed_for_cpu(quantized, state)
        return cls(packed, state.absmax, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        x = x.contiguous()
        y = x.new_empty(x.shape[0], self._out)
        weight, absmax = self._pointers
        out_features, in_features = self._shape
        self._kernel(
            ctypes.c_int64(x.shape[0]),
            out_features,
            in_features,
            ctypes.c_void_p(x.data_ptr()),
            weight,
            absmax,
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(_BLOCK),
            in_features,
            out_features,
        )
        return y if self._bias is None else y.add_(self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weight and scales."""
        return self._weight.nbytes + self._absmax.nbytes


def _kernel() -> Any:
    """Return bitsandbytes' kernel, or None where this version or processor has none."""
    from bitsandbytes import cextension, functional

    runs = torch.cpu._is_avx512_bf16_supported() and hasattr(
        functional, "_convert_weight_packed_for_cpu"
    )
    return getattr(cextension.lib, "gemv_4bit_inference_cpu_nf4_bf16", None) if runs else None
