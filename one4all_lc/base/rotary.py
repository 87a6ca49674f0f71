"""Rotary position embeddings as one operation a tensor.

transformers writes them as eight. Its attention layers find the function by its name among their
module's globals: here the layers of one model, and no others, get transformers' own `forward` with
another function under that name.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from one4all_lc.base.compiled.kernel import runs
from one4all_lc.base.compiled.rotation import rotate

_NAME = "apply_rotary_pos_emb"

Apply = Callable[..., tuple[Tensor, Tensor]]


def fuse(model: nn.Module) -> None:
    """Let a model's attention layers turn heads with our kernel, if it runs and gives the same."""
    first = next(model.parameters())
    if not runs(first.device, first.dtype):
        return
    for module in model.modules():
        forward: Any = type(module).forward
        if _NAME not in getattr(getattr(forward, "__code__", None), "co_names", ()):
            continue
        apply = forward.__globals__.get(_NAME)
        if apply is not None and _same(apply):
            names = forward.__globals__ | {_NAME: _fused(apply)}
            made = types.FunctionType(
                forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
            )
            made.__kwdefaults__ = forward.__kwdefaults__
            module.forward = types.MethodType(made, module)


def _fused(apply: Apply) -> Apply:
    def turn(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        if more or named or not all(_fits(x, cos) for x in (q, k)):
            return apply(q, k, cos, sin, *more, **named)
        return _turned(q, cos, sin), _turned(k, cos, sin)

    return turn


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the heads of every row of a batch; the engine's forwards have one."""
    if x.shape[0] == 1:
        return rotate(x, cos, sin)
    angles = zip(cos.expand(x.shape[0], -1, -1), sin.expand(x.shape[0], -1, -1), strict=True)
    rows = zip(x, angles, strict=True)
    return torch.cat([rotate(row[None], c[None], s[None]) for row, (c, s) in rows])


def _fits(x: Tensor, cos: Tensor) -> bool:
    """Whether the kernel takes a tensor: heads that lie as it reads them."""
    return (
        x.stride(3) == 1
        and (x.shape[2], x.shape[3]) == cos.shape[1:]
        and cos.shape[0] in (1, x.shape[0])
        and x.dtype == cos.dtype
        and cos.is_contiguous()
        and runs(x.device, x.dtype)
        and not torch.is_grad_enabled()
    )


@functools.cache
@torch.inference_mode()
def _same(apply: Apply) -> bool:
    """Whether a model turns heads as the kernel does: some turn neighbours instead of halves."""
    q = torch.linspace(-1, 1, 2 * 3 * 8).view(1, 2, 3, 8)
    k, angles = q.flip(3), torch.linspace(0, 3, 3 * 8).view(1, 3, 8)
    cos, sin = angles.cos(), angles.sin()
    try:
        expected = apply(q, k, cos, sin)
    except (TypeError, RuntimeError):  # it takes something else
        return False
    found = rotate(q, cos, sin), rotate(k.contiguous(), cos, sin)
    return len(expected) == 2 and all(
        map(functools.partial(torch.allclose, atol=1e-6), found, expected)
    )
