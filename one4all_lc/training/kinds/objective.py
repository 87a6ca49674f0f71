"""What a batch of an expert that decides is, and what its loss is."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from one4all_lc.base.heads import Head
from one4all_lc.base.loading import SharedBase
from one4all_lc.training.batches import IGNORED, Batch
from one4all_lc.training.kinds.examples import KindExample, Labelling
from one4all_lc.training.precision import as_base, compute_as_base
from one4all_lc.training.recipe import Recipe


class Reader(nn.Module):
    """An encoder with an adapter, and the head that is learned beside it.

    Args:
        encoder: PEFT's model.
        head: Of the expert's kind and labels.
    """

    def __init__(self, encoder: nn.Module, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, **features: Tensor) -> Tensor:
        """Return the head's logits of tokenized texts; see `base.heads.logits_of`."""
        with as_base(self.encoder):
            hidden = self.encoder(**features).last_hidden_state
        logits: Tensor = self.head(hidden, features["attention_mask"])
        return logits


class Deciding:
    """The objective of experts that decide.

    Args:
        labelling: Kind and labels.
        base: The encoder base.
    """

    dev_rows, dev_tokens, pads = 512, 1 << 14, True

    def __init__(self, labelling: Labelling, base: SharedBase) -> None:
        self._kind, self._several = labelling.kind, labelling.several
        self._padding = base.tokenizer.pad_token_id or 0
        self._typed = "token_type_ids" in inspect.signature(base.model.forward).parameters

    def prepare(self, model: nn.Module, recipe: Recipe, device: torch.device) -> str:
        """Have the adapter compute in the encoder's type."""
        compute_as_base(model, device)
        return "texts are not packed: an encoder reads them side by side" * recipe.packing

    def lay(self, rows: Sequence[KindExample]) -> Batch:
        """Lay texts under one another, padded on the right.

        Returns:
            `input_ids`, `attention_mask`, and `token_type_ids` where the base tells them apart, of
            shape (rows, length); `labels`, of which those from 0 are learned; for `extract`
            `candidates`, 1 for the tokens that may be the answer's.
        """
        length = max(map(len, rows))

        def padded(values: Sequence[int], filling: int) -> list[int]:
            return [*values, *[filling] * (length - len(values))]

        batch = {
            "input_ids": torch.tensor([padded(row.tokens, self._padding) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows]),
        }
        if self._typed:
            types = [row.types or (0,) * len(row) for row in rows]
            batch["token_type_ids"] = torch.tensor([padded(item, 0) for item in types])
        if self._kind == "tag":
            batch["labels"] = torch.tensor([padded(row.wanted, IGNORED) for row in rows])
            return batch
        batch["labels"] = torch.tensor([row.wanted for row in rows])
        if self._kind == "extract":
            own = [[int(i == 0 or i in row.own) for i in range(length)] for row in rows]
            batch["candidates"] = torch.tensor(own)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss of what is learned."""
        given = dict(batch)
        labels, candidates = given.pop("labels"), given.pop("candidates", None)
        logits = model(**given)
        if self._several:
            wanted = labels.to(logits.dtype)
            return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        if candidates is not None:  # (rows, length, 2) to a choice among tokens for each end
            nowhere = candidates[..., None] == 0
            logits = logits.masked_fill(nowhere, torch.finfo(logits.dtype).min).transpose(1, 2)
        outputs = logits.shape[-1]
        return functional.cross_entropy(
            logits.reshape(-1, outputs), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
