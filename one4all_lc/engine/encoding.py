"""The forward of an encoder: rows of tokens in, each row's logits by its own adapter and head.

The tokens of all rows lie one after another, so that nothing is computed for padding; only where
they attend to each other are rows padded to one length. An encoder whose attention is not so
simple, because its layers see a window for example, gets padded rows.
"""

import functools
import inspect
import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.heads import logits_of
from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import AdaptersById
from one4all_lc.base.planning import Planner
from one4all_lc.errors import ModelNotFound
from one4all_lc.folder import Expert
from one4all_lc.head import POOLED

NAME = "one4all-texts"

SHORT = 64
"""Up to so many tokens plain products are the faster attention on a CPU."""

_WINDOWS = ("sliding_window", "local_attention", "attention_window")
"""What configurations call the width of layers that do not see all of a text."""


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


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of rows lie.

    Attributes:
        counts: Tokens of each row.
        padded: For each place of a padded batch, row by row, a token that lies there; at places
            beyond a row's end some other one.
        mask: Which places have a token, shape (rows, longest).
        places: The place of each token in the padded batch.
    """

    counts: tuple[int, ...]
    padded: Tensor
    mask: Tensor
    places: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> "Layout":
        """Lay out rows of so many tokens."""
        lengths = torch.tensor(counts)
        columns = torch.arange(int(lengths.max()))
        mask = columns < lengths[:, None]
        firsts = lengths.cumsum(0) - lengths
        padded = (firsts[:, None] + columns.minimum(lengths[:, None] - 1)).flatten()
        places = mask.flatten().nonzero()[:, 0]
        return cls(tuple(counts), padded.to(device), mask.to(device), places.to(device))

    def apart(self, x: Tensor) -> Tensor:
        """Put tokens (tokens, width) into rows (rows, longest, width)."""
        return x.index_select(0, self.padded).view(*self.mask.shape, -1)

    @functools.cached_property
    def even(self) -> bool:
        """Whether all rows are of one length."""
        return len(self.places) == self.mask.numel()

    @functools.cached_property
    def bias(self) -> Tensor:
        """What is added to scores so that nobody sees a place without a token."""
        bias = torch.zeros(self.mask.shape, device=self.mask.device)
        return bias.masked_fill_(~self.mask, torch.finfo(bias.dtype).min)[:, None, None, :]

    def positions(self, first: int) -> Tensor:
        """Return each token's position in its row, counted from `first`."""
        return (self.places % self.mask.shape[1]) + first


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    texts: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Let the tokens of each row attend to each other.

    Args:
        module: The layer's.
        query: Shape (1, heads, tokens, size).
        key: The same.
        value: The same.
        attention_mask: Not looked at.
        scaling: Of the scores.
        texts: Where the rows' tokens lie.

    Returns:
        Shape (1, tokens, heads, size), and no weights.
    """
    assert texts is not None  # no forward comes without
    heads, size = query.shape[1], query.shape[3]
    rows, longest = texts.mask.shape

    def apart(x: Tensor) -> Tensor:
        flat = x[0].transpose(0, 1).reshape(-1, heads * size)
        return texts.apart(flat).view(rows, longest, heads, size).transpose(1, 2)

    scale = size**-0.5 if scaling is None else scaling
    q, k, v = apart(query), apart(key), apart(value)
    if query.device.type == "cpu" and longest <= SHORT:
        attended = _attend_shortly(q, k, v, texts.bias, scale)
    else:
        mask = None if texts.even else texts.mask[:, None, None, :]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    flat = attended.transpose(1, 2).reshape(rows * longest, heads * size)
    together = flat if texts.even else flat.index_select(0, texts.places)
    return together.view(1, -1, heads, size), None


def _attend_shortly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attend by plain products: torch's fused attention takes thrice as long for short texts."""
    rows, heads, longest, size = q.shape
    q, k, v = (x.reshape(rows * heads, longest, size) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).float().view(rows, heads, longest, longest)
    weights = scores.mul_(scale).add_(bias).softmax(-1)
    attended = torch.bmm(weights.to(v.dtype).view(rows * heads, longest, longest), v)
    return attended.view(rows, heads, longest, size)


AttentionInterface.register(NAME, _attend)


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
        taken = inspect.signature(base.model.forward).parameters
        self._typed = "token_type_ids" in taken
        self.pads = "position_ids" not in taken or not self._lies_together()

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
        layout = Layout.of([len(row.tokens) for row in placed], self._base.device)
        hidden = self._hidden(placed, layout, adapters)
        logits: dict[int, Tensor] = {}
        first = 0
        for identity, party in itertools.groupby(placed, lambda row: row.expert.identity):
            texts = list(party)
            part = slice(first, first + len(texts))
            card, facts = texts[0].expert.card, texts[0].expert.card.head_facts
            assert facts is not None  # checked where the request was made
            head = adapters[identity].head
            mask = layout.mask[part]
            found = logits_of(hidden[part], mask, head, card.kind, facts.pooling).cpu()
            for i, row in enumerate(texts):
                whole = card.kind in POOLED
                logits[order[first + i]] = found[i] if whole else found[i, : len(row.tokens)]
            first = part.stop
        return [logits[i] for i in range(len(rows))]

    def _hidden(self, rows: Sequence[TextRow], layout: Layout, adapters: AdaptersById) -> Tensor:
        """Return the last hidden states, shape (rows, longest, width)."""
        longest = layout.mask.shape[1]
        plan = self._planner.plan(
            [
                (longest if self.pads else count, ((row.expert.identity, 1.0),))
                for row, count in zip(rows, layout.counts, strict=True)
            ],
            adapters,
        )
        typed = any(row.types for row in rows)
        with self._cell.using(plan):
            return self._run(
                [row.tokens for row in rows],
                [row.types or (0,) * len(row.tokens) for row in rows] if typed else None,
                layout,
                pads=self.pads,
            )

    def _run(
        self,
        tokens: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        layout: Layout,
        *,
        pads: bool,
    ) -> Tensor:
        """Run the model on rows as they lie; return hidden states (rows, longest, width)."""
        model, device = self._base.model, self._base.device
        ids = torch.tensor(list(itertools.chain(*tokens)), device=device)
        kinds = ids.new_zeros(ids.shape)
        if types is not None:
            kinds = torch.tensor(list(itertools.chain(*types)), device=device)
        if pads:
            hole = ~layout.mask
            given: dict[str, Any] = {"attention_mask": layout.mask.long()}
            if self._typed:
                given["token_type_ids"] = layout.apart(kinds[:, None])[..., 0].masked_fill(hole, 0)
            ids = layout.apart(ids[:, None])[..., 0].masked_fill(hole, self._padding)
            hidden: Tensor = model(input_ids=ids, **given).last_hidden_state
            return hidden
        given = {"token_type_ids": kinds[None]} if self._typed else {}
        output = model(
            input_ids=ids[None],
            position_ids=layout.positions(self._base.first_position)[None],
            attention_mask=_NO_MASK,
            texts=layout,
            **given,
        )
        return layout.apart(output.last_hidden_state[0])

    @torch.inference_mode()
    def _lies_together(self) -> bool:
        """Whether rows that lie one after another come out as padded ones do; if so, let them."""
        config = self._base.model.config
        if config._attn_implementation == NAME:  # it was found before
            return True
        if any(getattr(config, name, None) for name in _WINDOWS):
            return False
        tokens = [[n % config.vocab_size for n in range(5, 5 + length)] for length in (9, 4, 7)]
        layout = Layout.of([len(row) for row in tokens], self._base.device)
        expected = self._run(tokens, None, layout, pads=True)[layout.mask].float()
        before = config._attn_implementation
        try:
            config._attn_implementation = NAME
            found = self._run(tokens, None, layout, pads=False)[layout.mask].float()
            near = (found - expected).norm() < 0.03 * expected.norm()
        except (TypeError, ValueError, RuntimeError, IndexError):  # its code expects other shapes
            near = torch.tensor(data=False)
        if not near:
            config._attn_implementation = before
        return bool(near)

    def drop_all_but(self, adapters: Container[str]) -> None:
        """Let go of adapters that are not in memory any more."""
        self._planner.keep(adapters)


_NO_MASK = torch.zeros(1, 1, 1, 1)
"""A mask of four axes is what models pass on as it is."""
