"""The forward: rows of tokens in, logits out, each row with its own mixture of adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import AdaptersById, Mixture, Packer, attach
from one4all_lc.engine.cache import SlotCache, Window
from one4all_lc.errors import ModelNotFound


@dataclass(frozen=True)
class RowInput:
    """One row of a forward.

    Attributes:
        slot: Its slot in the cache.
        tokens: Its next tokens, as many as every row of the forward has.
        start: The position of the first of them.
        mixture: The adapters that it is computed with.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    mixture: Mixture


class Decoder:
    """Owns the base's forward, its LoRA layers and the key/value cache; one thread uses it.

    Args:
        base: The shared base; LoRA layers are put into it.
    """

    def __init__(self, base: SharedBase) -> None:
        self._base = base
        self._cell = attach(base.model, list(base.facts.linears))
        self._packer = Packer()
        config = base.model.config.get_text_config()
        self._cache = SlotCache(config.num_hidden_layers)
        self._windows = _attention_windows(config)

    @torch.inference_mode()
    def forward(self, rows: Sequence[RowInput], adapters: AdaptersById) -> Tensor:
        """Run the rows' tokens through the model and keep their keys and values.

        Free slots between the rows are computed too, and nobody reads what they give: a slice of
        the cache costs less than a copy of it.

        Args:
            rows: By ascending slot, with equally many tokens each.
            adapters: Every adapter that the rows name, by identity.

        Returns:
            Logits of every row's last token, shape (rows, vocabulary).
        """
        first, length = rows[0].slot, len(rows[0].tokens)
        by_slot = {row.slot: row for row in rows}
        idle = RowInput(-1, [0] * length, 0, ())
        filled = [by_slot.get(slot, idle) for slot in range(first, rows[-1].slot + 1)]
        device = self._base.device
        tokens = torch.tensor([list(row.tokens) for row in filled], device=device)
        starts = torch.tensor([row.start for row in filled], device=device)
        positions = starts[:, None] + torch.arange(length, device=device)
        window = Window(first, positions, max(row.start for row in rows) + length)
        self._cache.aim(window)
        plan = self._packer.plan([row.mixture for row in filled], adapters)
        with self._cell.using(plan):
            output = self._base.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=self._masks(window),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        wanted = [row.slot - first for row in rows]
        logits: Tensor = output.logits[:, -1]
        return logits if len(wanted) == len(filled) else logits[wanted]

    def reserve(self, slots: int, columns: int) -> None:
        """Make room in the cache for so many rows of so many tokens."""
        self._cache.reserve(slots, columns)

    @torch.inference_mode()
    def forget(self, slot: int) -> None:
        """Clear what a failed row may have left in its slot."""
        self._cache.clear(slot)

    def _masks(self, window: Window) -> Tensor | dict[str, Tensor]:
        """One mask, or one for each kind of attention layer where a model mixes them."""
        masks = {kind: self._mask(window, width) for kind, width in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, window: Window, width: int | None) -> Tensor:
        """What is added to the attention scores, shape (rows, 1, length, end)."""
        columns = torch.arange(window.end, device=window.positions.device)
        positions = window.positions[:, :, None]
        visible = columns <= positions
        if width is not None:
            visible &= columns > positions - width
        lowest = torch.finfo(self._base.dtype).min
        mask = torch.zeros(visible.shape, dtype=self._base.dtype, device=visible.device)
        return mask.masked_fill_(~visible, lowest)[:, None]


def _attention_windows(config: object) -> dict[str, int | None]:
    """Kinds of attention layer to how far back they see; None sees everything.

    Models that mix kinds take a mask for each (Gemma3, Qwen3); the others take one (Mistral).

    Raises:
        ModelNotFound: A layer sees in a way that no mask here describes.
    """
    width = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        kinds = {"sliding_attention"} if width else {"full_attention"}
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if unknown:
        msg = (
            f"The base has layers of the kind {unknown[0]!r}: a base attends fully or within a "
            "sliding window."
        )
        raise ModelNotFound(msg)
    return {kind: width if kind == "sliding_attention" else None for kind in sorted(kinds)}
