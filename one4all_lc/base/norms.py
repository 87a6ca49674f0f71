"""Root-mean-square norms as one operation each.

transformers writes them as eight, which for one row take as long as a small layer's product, and on
a CPU torch's own is written as ten. Both of those used here are the same in float32, and in
bfloat16 round once where transformers rounds twice.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from one4all_lc.base.compiled import norm
from one4all_lc.base.compiled.kernel import runs


class FusedNorm(nn.Module):
    """A root-mean-square norm with a gain for each feature."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., features) to (..., features)."""
        gain = self.weight.data
        compiled = x.dtype == gain.dtype and runs(x.device, x.dtype)
        if compiled and not torch.is_grad_enabled():
            return norm.rms_norm(x, gain, self._eps)
        return functional.rms_norm(x, tuple(gain.shape), gain, self._eps)

    __call__ = forward  # without torch's hooks: a forward calls dozens


def fuse(model: nn.Module) -> None:
    """Replace the norms of a model that compute what torch's own computes."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and isinstance(module.weight, nn.Parameter):
            fused = FusedNorm(module.weight, _epsilon(module))
            if _same(fused, module):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, fused)


def _epsilon(module: nn.Module) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))


@torch.inference_mode()
def _same(fused: FusedNorm, module: nn.Module) -> bool:
    """Whether both give the same in float32: some models add one to the gain (Gemma)."""
    x = torch.linspace(-2, 2, 3 * fused.weight.numel(), device=fused.weight.device).view(3, -1)
    expected = copy.deepcopy(module).float()(x)
    return torch.allclose(copy.deepcopy(fused).float()(x), expected, rtol=1e-5, atol=1e-6)
