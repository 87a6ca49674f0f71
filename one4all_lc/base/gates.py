"""Gated feed-forward layers with the gate as one operation.

transformers writes `down_proj(act_fn(gate_proj(x)) * up_proj(x))`. Both products are one already
(`linears`), and come out side by side: one kernel makes of them what the last product reads.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from one4all_lc.base.compiled.gate import silu_gate
from one4all_lc.base.linears import GroupedLinear


class GatedLayer(nn.Module):
    """A feed-forward layer in the place of the base's own."""

    def __init__(self, gate_and_up: GroupedLinear, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.down_proj = gate_and_up, down

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., features) to (..., features)."""
        y: Tensor = self.down_proj(silu_gate(self.gate_proj.group.all_outputs(x)))
        return y

    __call__ = forward  # without torch's hooks, as in `linears`


def fuse(model: nn.Module) -> None:
    """Replace the layers of a model that compute what `GatedLayer` does."""
    for name, module in list(model.named_modules()):
        gate, up = getattr(module, "gate_proj", None), getattr(module, "up_proj", None)
        if not isinstance(gate, GroupedLinear) or not isinstance(up, GroupedLinear):
            continue
        halves = gate.group is up.group and len(set(gate.group.widths)) == 1
        if halves and len(gate.group.widths) == 2 and _is_gated(module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, GatedLayer(gate, module.down_proj))


@torch.inference_mode()
def _is_gated(module: nn.Module) -> bool:
    """Whether a layer's own code computes down(silu(gate) * up), and nothing besides."""
    gates, values = torch.linspace(-9, 9, 32).view(2, 16), torch.linspace(9, -9, 32).view(2, 16)
    parts = SimpleNamespace(
        gate_proj=lambda _: gates,
        up_proj=lambda _: values,
        down_proj=lambda x: x,
        act_fn=getattr(module, "act_fn", None),
        config=getattr(module, "config", None),
    )
    try:
        found = type(module).forward(parts, gates)
    except Exception:  # it uses more than these parts
        return False
    return torch.allclose(found, functional.silu(gates) * values, rtol=1e-5, atol=1e-6)
