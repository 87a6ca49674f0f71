"""The base's linear layers, those that read the same input computed as one.

Queries, keys and values are three layers of one input, gate and up two: one product of their joined
weights costs less than one for each, and so does what adapters add. The layers stay where
transformers' own modelling code calls them: the first one called computes for all.
"""

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from one4all_lc.base.compiled.kernel import runs
from one4all_lc.base.kernels import Kernels, Product, find_kernels, small_rows
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import PlanCell
from one4all_lc.base.quantized import dense_weight

_log = logging.getLogger(__name__)

SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("w1", "w3"),
)
"""Names of sibling layers that read one input, in the order in which they are called."""


class LinearGroup:
    """Linear layers of one input.

    Args:
        names: Module paths.
        layers: The layers as the base was loaded with them.
        kernels: How to lay their weights out.
        cell: Where the running forward's plan is found.
    """

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Linear], kernels: Kernels, cell: PlanCell
    ) -> None:
        self.names = tuple(names)
        self.widths = tuple(layer.out_features for layer in layers)
        self.in_features = layers[0].in_features
        self._sizes = list(self.widths)
        self._kernels, self._cell = kernels, cell
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()
        self.small: Product | None = None
        self.large: Product = OwnLayers(layers)

    def lay_out(self, *, quantized: bool) -> None:
        """Lay out the layers' weights anew."""
        assert isinstance(self.large, OwnLayers)
        weight, bias = self.large.joined(self._kernels.dtype)
        if quantized:
            self.large, self.small = self._kernels.lay_out_quantized(weight, bias)
        else:
            self.large = self._kernels.lay_out(weight, bias)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the layers' weights in every layout."""
        return self.large.memory_bytes + (self.small.memory_bytes if self.small else 0)

    def output(self, index: int, x: Tensor) -> Tensor:
        """Return what layer `index` of the group makes of x: (..., in) to (..., out)."""
        if len(self.widths) == 1:
            return self.all_outputs(x)
        if x is not self._input:
            self._input = x
            self._outputs = self.all_outputs(x).split_with_sizes(self._sizes, -1)
        output = self._outputs[index]
        if index == len(self.widths) - 1:
            self._input, self._outputs = None, ()
        return output

    def all_outputs(self, x: Tensor) -> Tensor:
        """Return what all layers make of x, side by side: (..., in) to (..., sum of out)."""
        plan = self._cell.plan
        rows = x.reshape(-1, x.shape[-1])
        decoding = plan.decoding if self.small and plan.decoding <= self._kernels.small_rows else 0
        if not decoding:
            y = self.large(rows)
        elif decoding == rows.shape[0]:
            y = self.small(rows)  # type: ignore[misc]
        else:
            y = torch.cat([self.small(rows[:decoding]), self.large(rows[decoding:])])  # type: ignore[misc]
        if plan.segments:
            plan.add(self.names[0], rows, y)
        return y.view(*x.shape[:-1], -1)


class OwnLayers:
    """A group's layers as the base was loaded with them: bitsandbytes' own on CUDA."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = tuple(layers)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        if len(self._layers) == 1:
            return self._layers[0](x)  # type: ignore[no-any-return]
        return torch.cat([layer(x) for layer in self._layers], -1)

    @property
    def memory_bytes(self) -> int:
        """Bytes of their weights as quantized."""
        return sum(layer.weight.nbytes for layer in self._layers)

    def joined(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return their weights and biases one under the other, not quantized."""
        weight = torch.cat([dense_weight(layer, dtype) for layer in self._layers])
        if all(layer.bias is None for layer in self._layers):
            return weight, None
        biases = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.to(dtype)
            for layer in self._layers
        ]
        return weight, torch.cat(biases)


class GroupedLinear(nn.Module):
    """One layer of a group, in the place of the base's own.

    It is called without torch's hooks: nobody hooks it, and a forward calls hundreds.
    """

    def __init__(self, group: LinearGroup, index: int) -> None:
        super().__init__()
        self.group = group
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.group.output(self._index, x)

    __call__ = forward


class Linears:
    """Every linear layer of a base, in groups.

    Args:
        base: Its model is changed in place: layers are replaced, weights laid out anew.
    """

    def __init__(self, base: SharedBase) -> None:
        self.cell = PlanCell()
        self.device = base.device
        self.compiled = runs(base.device, base.dtype)
        model = base.model
        head = [name for name, module in model.named_modules() if module is _head(model)]
        grouped = _grouped(list(base.facts.linears))
        widths = {in_features for _, in_features in base.facts.linears.values()}
        self.kernels = find_kernels(base.dtype, base.device, widths, quantization=base.quantization)
        if base.encodes:
            self.kernels.small = False  # no token of an encoder is decoded
        self.groups: list[LinearGroup] = []
        for names in [*grouped, *([name] for name in head)]:
            layers = [cast("nn.Linear", model.get_submodule(name)) for name in names]
            group = LinearGroup(names, layers, self.kernels, self.cell)
            for index, name in enumerate(names):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, GroupedLinear(group, index))
            self.groups.append(group)
        if self.kernels.layout != "own":
            self._lay_out(len(grouped))
        _log.info("products on this machine: %s", self.kernels)
        if self.kernels.layout == "dense" and base.quantization != "none":
            _log.warning(
                "This processor does not multiply bfloat16 (AVX512-BF16): the base computes slower "
                "than it could, with %s.",
                self.kernels,
            )

    def _lay_out(self, quantized: int) -> None:
        """Lay out every weight; small ones of the `quantized` first stay if they are faster."""
        for i, group in enumerate(self.groups):
            group.lay_out(quantized=i < quantized)
        both = [group for group in self.groups if group.small]
        if both:
            small = [group.small for group in both if group.small]
            large, widths = [group.large for group in both], [group.in_features for group in both]
            self.kernels.small_rows = small_rows(small, large, widths, self.kernels.dtype)
        if not self.kernels.small_rows:
            for group in both:
                group.small = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights that were laid out anew."""
        return sum(group.memory_bytes for group in self.groups)

    @classmethod
    def of(cls, base: SharedBase) -> "Linears":
        """Return those of a base, made at the first call."""
        made = getattr(base.model, "_one4all_linears", None)
        if not isinstance(made, cls):
            made = cls(base)
            base.model._one4all_linears = made
        return made


def _head(model: nn.Module) -> nn.Module | None:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return head if isinstance(head, nn.Linear) else None


def _grouped(names: Sequence[str]) -> list[list[str]]:
    """Join the names of siblings that read one input."""
    known, groups, seen = set(names), [], set()
    for name in names:
        if name in seen:
            continue
        parent, _, leaf = name.rpartition(".")
        siblings = next((group for group in SHARED_INPUTS if leaf == group[0]), (leaf,))
        group = [f"{parent}.{item}" if parent else item for item in siblings]
        if not known.issuperset(group):
            group = [name]
        seen.update(group)
        groups.append(group)
    return groups
