"""An adapter is learned in float32 and computes in the base's own type.

PEFT would make every input of an adapted layer float32, which takes longer than the adapter's
products; autocast casts its small factors instead.
"""

import torch
from torch import nn
from transformers import PreTrainedModel


def compute_as_base(model: nn.Module, device: torch.device) -> None:
    """Prepare a model for forwards inside `as_base`: PEFT casts nothing any more.

    On a CPU plain products are twice as fast as torch's fused attention with its gradients.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and device.type == "cpu":
            module.set_attn_implementation("eager")
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]


def as_base(model: nn.Module) -> torch.autocast:
    """Compute in bfloat16 what follows, if the base does."""
    weight = next(model.parameters())
    return torch.autocast(
        weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16
    )
