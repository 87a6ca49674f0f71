"""Attention of rows of all lengths in one forward, through transformers' attention interface.

The tokens of all rows lie one after another, so no row is padded. On a CPU tokens that decode, and
those of a prompt's first tile, attend by themselves in a kernel of our own. The rest of a prompt,
read in chunks, attends in tiles of `TILE` tokens at fixed positions. So what a token sees, and in
which order it is summed, depends on its position alone: not on the chunks that its prompt was cut
into, and not on its neighbours. Elsewhere rows that decode attend in spans of neighbouring slots.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from one4all_lc.base.compiled import attention as compiled

TILE = 64
"""Columns are read, and tokens of prompts computed, in whole tiles.

The kernels sum over columns in vectors and treat a ragged end otherwise, so in bfloat16 a row's
last bits would depend on how long its longest neighbour is. Over whole tiles the columns that a row
does not see add exact zeros: it gets the same bits alone and in company.
"""

_CALL = 128
"""What one more call costs, in rows times columns: a guess for devices without our kernel."""

NAME = "one4all"


@dataclass(frozen=True, eq=False)
class Span:
    """Tokens that attend in one call.

    Attributes:
        tokens: Which tokens, in the order of the spans: `rows` times as many as each row has.
        slots: The slots of their rows, neighbours.
        end: Columns to read, a multiple of TILE.
        positions: Column of every token, shape (rows, length).
    """

    tokens: slice
    slots: slice
    end: int
    positions: Tensor

    def mask(self, width: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores, shape (rows, 1, groups * length, end)."""
        columns = torch.arange(self.end, device=self.positions.device)
        positions = self.positions[:, :, None]
        visible = columns <= positions
        if width is not None:
            visible &= columns > positions - width
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min).repeat(1, groups, 1)[:, None]


@dataclass(frozen=True, eq=False)
class Singles:
    """Tokens that attend by themselves, in a kernel of our own.

    Attributes:
        tokens: Which tokens, int64.
        slots: Slot of each, int64.
        positions: Column of each, int64.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor


@dataclass(eq=False)
class Spans:
    """How the tokens of one forward attend, and masks, which the layers share.

    Attributes:
        singles: Tokens that spans leave out; None if there are none.
        spans: Those of the other tokens.
        order: Which token comes at each place in the spans; None if they come as they are, which
            they do beside singles.
    """

    singles: Singles | None
    spans: Sequence[Span]
    order: Tensor | None = None
    _masks: dict[tuple[int | None, int], list[Tensor]] = dataclasses.field(default_factory=dict)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, width: int | None
    ) -> Tensor:
        """Attend in every span.

        Args:
            query: Shape (1, heads, tokens, size).
            keys: The layer's cache, shape (slots, key heads, columns, size).
            values: The same.
            scale: Of the scores.
            width: How far back a token sees; None sees everything.

        Returns:
            Shape (1, tokens, heads, size).
        """
        _, heads, _, size = query.shape
        key_heads = keys.shape[1]
        groups = heads // key_heads
        query = query[0].transpose(0, 1).contiguous()  # (tokens, heads, size)
        attended = torch.empty_like(query)
        if self.singles is not None:
            one = self.singles
            compiled.attend(
                query, keys, values, attended, one.tokens, one.slots, one.positions, scale, width
            )
        if self.order is not None:
            query = query[self.order]
        for span, mask in zip(self.spans, self._masks_of(width, groups, query.dtype), strict=True):
            rows, length = span.positions.shape
            # Heads that share keys are more queries of those: (rows, key heads, groups * length).
            part = query[span.tokens].view(rows, length, key_heads, groups, size)
            folded = part.permute(0, 2, 3, 1, 4).reshape(rows, key_heads, groups * length, size)
            output = functional.scaled_dot_product_attention(
                folded,
                keys[span.slots, :, : span.end],
                values[span.slots, :, : span.end],
                attn_mask=mask,
                scale=scale,
            )
            output = output.view(rows, key_heads, groups, length, size).permute(0, 3, 1, 2, 4)
            attended[span.tokens] = output.reshape(rows * length, heads, size)
        if self.order is not None:
            attended = torch.empty_like(attended).index_copy_(0, self.order, attended)
        return attended[None]

    def _masks_of(self, width: int | None, groups: int, dtype: torch.dtype) -> list[Tensor]:
        key = (width, groups)
        if key not in self._masks:
            self._masks[key] = [span.mask(width, groups, dtype) for span in self.spans]
        return self._masks[key]


def decoding_spans(slots: Sequence[int], starts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut rows of one token each into runs that attend in one call.

    A call reads neighbouring slots as far as the longest of its rows, so a long row is kept apart
    from short ones where reading too much would cost more than another call.

    Args:
        slots: Ascending.
        starts: Position of each row's token.

    Returns:
        For each run: its first row, the row after its last, and the columns to read.
    """
    runs: list[tuple[int, int, int]] = []
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        end = _whole(start + 1)
        if runs and slots[row - 1] + 1 == slot:
            first, last, longest = runs[-1]
            rows = last - first
            together = (rows + 1) * max(longest, end)
            if together <= rows * longest + end + _CALL:
                runs[-1] = (first, row + 1, max(longest, end))
                continue
        runs.append((row, row + 1, end))
    return runs


def reading_spans(start: int, length: int) -> list[tuple[int, int, int]]:
    """Cut a chunk of a prompt into tiles at fixed positions: first token, token after, columns."""
    bounds = [start, *range(_whole(start + 1), start + length, TILE), start + length]
    return [(a, b, _whole(b)) for a, b in itertools.pairwise(bounds)]


def _whole(columns: int) -> int:
    return -(-columns // TILE) * TILE


def install(model: nn.Module) -> None:
    """Make a model attend through this module when it is given `spans`, as before when not."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    spans: Spans | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if spans is None:
        plain: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
        return plain(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return spans.attend(query, key, value, scale, sliding_window), None
