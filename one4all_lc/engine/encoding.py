"""The forward of an encoder: rows of tokens in, each row's logits by its own adapter and head."""

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.heads import logits_of
from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import AdaptersById
from one4all_lc.base.planning import Planner
from one4all_lc.errors import ModelNotFound
from one4all_lc.folder import Expert
from one4all_lc.head import POOLED


@dataclass(frozen=True)
class TextRow:
    """One text, or pair of texts, that an expert reads.

    Attributes:
        tokens: Token ids, special ones included.
        expert: Whose adapter and head it is computed with.
        types: For each token 1 if it is the second text's, for bases that tell them apart.
    """

    tokens: tuple[int, ...]
    expert: Expert
    types: tuple[int, ...] = ()


class Encoder:
    """Owns an encoder base's forward and its linears; one thread uses it.

    Args:
        base: The shared base; its layers are replaced.

    Raises:
        ModelNotFound: The base is no encoder.
    """

    def __init__(self, base: SharedBase) -> None:
        if not base.encodes:
            msg = f"{base.facts.id} is a decoder: give the id or path of an encoder, such as BERT."
            raise ModelNotFound(msg)
        linears = Linears.of(base)
        self._base = base
        self._cell = linears.cell
        self.kernels = str(linears.kernels)
        if linears.compiled:
            Kernel.compile_all(base.dtype)
        self._planner = Planner.of(linears)
        self._padding = base.tokenizer.pad_token_id or 0
        self._typed = "token_type_ids" in base.tokenizer.model_input_names

    @torch.inference_mode()
    def forward(self, rows: Sequence[TextRow], adapters: AdaptersById) -> list[Tensor]:
        """Run the rows through the model, one expert's beside each other, each with its head.

        Args:
            rows: In any order.
            adapters: Those of the rows' experts, by identity.

        Returns:
            Of each row, in the order of `rows`, float32 on the CPU: logits of shape (outputs,) for
            kinds that read a text as a whole, else (tokens, outputs).
        """
        order = sorted(range(len(rows)), key=lambda i: rows[i].expert.identity)
        placed = [rows[i] for i in order]
        hidden, mask = self._hidden(placed, adapters)
        logits: dict[int, Tensor] = {}
        first = 0
        for identity, party in itertools.groupby(placed, lambda row: row.expert.identity):
            texts = list(party)
            part = slice(first, first + len(texts))
            card, facts = texts[0].expert.card, texts[0].expert.card.head_facts
            assert facts is not None  # checked where the request was made
            head = adapters[identity].head
            found = logits_of(hidden[part], mask[part], head, card.kind, facts.pooling).cpu()
            for i, row in enumerate(texts):
                whole = card.kind in POOLED
                logits[order[first + i]] = found[i] if whole else found[i, : len(row.tokens)]
            first = part.stop
        return [logits[i] for i in range(len(rows))]

    def _hidden(self, rows: Sequence[TextRow], adapters: AdaptersById) -> tuple[Tensor, Tensor]:
        """Return the last hidden states and which of them are of tokens, not of padding."""
        device = self._base.device
        longest = max(len(row.tokens) for row in rows)
        ids = torch.full((len(rows), longest), self._padding)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.tokens)] = torch.tensor(row.tokens)
            mask[i, : len(row.tokens)] = 1
        even = all(len(row.tokens) == longest for row in rows)
        given: dict[str, Any] = {"attention_mask": None if even else mask.to(device)}
        if self._typed and any(row.types for row in rows):
            given["token_type_ids"] = _types(rows, longest).to(device)
        plan = self._planner.plan(
            [(longest, ((row.expert.identity, 1.0),)) for row in rows], adapters
        )
        with self._cell.using(plan):
            output = self._base.model(input_ids=ids.to(device), **given)
        return output.last_hidden_state, mask.to(device)

    def drop_all_but(self, adapters: Container[str]) -> None:
        """Let go of adapters that are not in memory any more."""
        self._planner.keep(adapters)


def _types(rows: Sequence[TextRow], longest: int) -> Tensor:
    types = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        if row.types:
            types[i, : len(row.types)] = torch.tensor(row.types)
    return types
