"""What makes logits of an encoder's hidden states; the same in training as in use."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from one4all_lc.head import HEAD_FILE, POOLED, HeadFacts, Pooling, outputs_of, shapes_of


def logits_of(
    hidden: Tensor, mask: Tensor, head: Mapping[str, Tensor], kind: str, pooling: Pooling
) -> Tensor:
    """Return a head's logits.

    Args:
        hidden: The encoder's last hidden states, shape (texts, tokens, width).
        mask: 1 for tokens of the text, 0 for padding, shape (texts, tokens).
        head: The head's tensors by name; see `one4all_lc.head`.
        kind: Of the expert.
        pooling: How one vector is made of a text; see `HeadFacts`.

    Returns:
        Shape (texts, outputs) for `classify` and `pair`, else (texts, tokens, outputs); float32.
    """
    x = hidden.float()
    if kind in POOLED:
        x = x[:, 0] if pooling == "first" else _mean(x, mask)
    if "dense.weight" in head:
        x = functional.linear(x, head["dense.weight"], head["dense.bias"]).tanh()
    return functional.linear(x, head["weight"], head["bias"])


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(x.dtype)
    return (weights[:, None] @ x)[:, 0] / weights.sum(1, keepdim=True)


class Head(nn.Module):
    """A head that is trained beside an adapter.

    Args:
        kind: `classify`, `tag`, `extract` or `pair`.
        labels: Those of the expert's card.
        width: Of the base's hidden states.
        pooling: As in `HeadFacts`.
        dense: Whether a layer of its own comes before the last.

    Example:
        head = Head("classify", ("negative", "positive"), base.facts.width)
        encoder = get_peft_model(base.model, LoraConfig(target_modules="all-linear", r=16))
        loss = cross_entropy(head.logits(encoder, features), labels)
    """

    def __init__(
        self,
        kind: str,
        labels: tuple[str, ...],
        width: int,
        *,
        pooling: Pooling = "mean",
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.labels, self.pooling = kind, labels, pooling
        shapes = shapes_of(outputs_of(kind, labels), width, dense=dense)
        self.tensors = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(_begun(shape)) for name, shape in shapes.items()}
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return logits; see `logits_of`."""
        return logits_of(hidden, mask, self.named(), self.kind, self.pooling)

    def logits(self, encoder: nn.Module, features: Mapping[str, Tensor]) -> Tensor:
        """Return what encoder and head make of tokenized texts.

        Args:
            encoder: The base's model, or PEFT's with the adapter in training.
            features: `input_ids`, `attention_mask` and what else the model takes, each of shape
                (texts, tokens).
        """
        hidden = encoder(**features).last_hidden_state
        logits: Tensor = self(hidden, features["attention_mask"])
        return logits

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by the names that they have in `head.safetensors`."""
        return {name.replace("_", "."): tensor for name, tensor in self.tensors.items()}

    def save(self, folder: Path, **facts: Any) -> HeadFacts:
        """Write `head.safetensors`; return what the card says of it.

        Args:
            folder: The expert's.
            **facts: Further fields of `HeadFacts`: the threshold, for example.
        """
        from safetensors.torch import save

        content = save({n: t.detach().cpu().float().contiguous() for n, t in self.named().items()})
        (folder / HEAD_FILE).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return HeadFacts.of({"pooling": self.pooling, **facts, "sha256": sha256})

    @classmethod
    def load(cls, folder: Path, kind: str, labels: tuple[str, ...], pooling: Pooling) -> Self:
        """Read the head of an expert's folder, to train it further."""
        from safetensors.torch import load

        tensors = load((folder / HEAD_FILE).read_bytes())
        width = tensors["weight"].shape[1]
        head = cls(kind, labels, width, pooling=pooling, dense="dense.weight" in tensors)
        head.tensors.load_state_dict({n.replace(".", "_"): t for n, t in tensors.items()})
        return head


def _begun(shape: tuple[int, ...]) -> Tensor:
    """Return first values: small weights, no bias."""
    tensor = torch.zeros(shape)
    return nn.init.normal_(tensor, std=0.02) if len(shape) == 2 else tensor
