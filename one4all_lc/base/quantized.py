"""bitsandbytes' weights: out of the layers that it made, and into our kernel on a CPU.

The only module that imports bitsandbytes.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from one4all_lc.base.compiled import nf4, nf4_layout


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


class Nf4:
    """An NF4 weight as our own kernel reads it, for processors with AVX512-BF16.

    bitsandbytes has one for such processors as well, made for few rows.
    """

    def __init__(self, weight: Tensor, shape: tuple[int, int], bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias
        self._outputs, self._features = shape

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self | None:
        """Quantize a weight whose values are NF4's already; None where the kernel does not run.

        Args:
            weight: Shape (out, in).
            bias: Shape (out,).
        """
        outputs, features = weight.shape
        if weight.dtype != torch.bfloat16 or not nf4.runs(outputs, features):
            return None
        from bitsandbytes import functional

        quantized, state = functional.quantize_4bit(
            weight.contiguous(),
            blocksize=nf4_layout.BLOCK,
            quant_type="nf4",
            compress_statistics=False,
        )
        bytes_ = quantized.flatten()
        codes = torch.stack([bytes_ >> 4, bytes_ & 15], -1).view(outputs, features)
        laid_out = nf4_layout.packed(codes, state.absmax.view(outputs, -1))
        return cls(laid_out, (outputs, features), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        if x.shape[1] != self._features:  # the kernel reads what it is told to
            msg = f"a weight of {self._features} inputs is given {x.shape[1]}"
            raise IndexError(msg)
        y = nf4.multiply(x.contiguous(), self._weight, self._outputs)
        return y if self._bias is None else y.add_(self._bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weight and scales."""
        return self._weight.nbytes


def stay_differentiable(model: nn.Module) -> None:
    """Prepare a model for training: dropout off, and no layer packed for inference.

    On a CPU, bitsandbytes packs an NF4 layer in eval mode at its first forward whose input needs
    no gradient. That is the first layer's case in training, and every layer's when a loss is only
    measured; the packed form passes no gradients on.
    """
    import bitsandbytes

    model.eval()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.train()
