"""The forward: rows of tokens in, logits out, each row with its own mixture of adapters."""

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from one4all_lc.base import gates, norms, rotary
from one4all_lc.base.compiled.kernel import Kernel
from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import AdaptersById, Mixture, Plan
from one4all_lc.base.packing import DEFAULT_PACKED_BYTES
from one4all_lc.base.planning import Planner
from one4all_lc.engine import attention
from one4all_lc.engine.attention import Singles, Span, Spans
from one4all_lc.engine.cache import SlotCache
from one4all_lc.engine.replay import Replay, Tokens
from one4all_lc.errors import ModelNotFound


@dataclass(frozen=True)
class RowInput:
    """One row of a forward.

    Attributes:
        slot: Its slot in the cache.
        tokens: Its next tokens: one while it decodes, a chunk while it reads its prompt.
        start: The position of the first of them.
        mixture: The adapters that it is computed with.
        decodes: Whether its token was chosen, not asked.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    mixture: Mixture
    decodes: bool


class Decoder:
    """Owns the base's forward, its linears and the key/value cache; one thread uses it.

    Args:
        base: The shared base; its layers are replaced.
        packed_bytes: Where adapters are packed, packings are kept up to this many bytes.

    Raises:
        ModelNotFound: The base attends in a way that is not computed here.
    """

    def __init__(self, base: SharedBase, packed_bytes: int = DEFAULT_PACKED_BYTES) -> None:
        _check_attention(base)
        attention.install(base.model)
        norms.fuse(base.model)
        rotary.fuse(base.model)
        linears = Linears.of(base)
        self._base = base
        self._cell = linears.cell
        self.kernels = str(linears.kernels)
        self._compiled = linears.compiled
        if self._compiled:
            gates.fuse(base.model)
            Kernel.compile_all(base.dtype)
        self._planner = Planner.of(linears, packed_bytes)
        config = base.model.config.get_text_config()
        self.cache = SlotCache(config.num_hidden_layers, compiled=self._compiled)
        self._replay = Replay(self._run) if self._compiled else None

    @torch.inference_mode()
    def forward(self, rows: Sequence[RowInput], adapters: AdaptersById) -> Tensor:
        """Run the rows' tokens through the model and keep their keys and values.

        The tokens of all rows lie one after another: first those of rows that decode, then the
        chunks of prompts, neighbours with one mixture.

        Args:
            rows: In any order, each slot once.
            adapters: Every adapter that the rows name, by identity.

        Returns:
            Logits of every row's last token, shape (rows, vocabulary), in the order of `rows`.
        """
        order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
        placed = [rows[i] for i in order]
        for row in rows:
            self.cache.check(row.slot, row.start + len(row.tokens))
        decoding = sum(row.decodes for row in rows)
        mixtures = [(len(row.tokens), row.mixture) for row in placed]
        plan = self._planner.plan(mixtures, adapters, decoding)
        tokens = _tokens(placed, order, self._base.device)
        if self._replay is not None and decoding == len(rows):
            return self._replay(tokens, plan, self.cache.settle())
        return self._run(tokens, plan, placed[decoding:])

    def _run(self, tokens: Tokens, plan: Plan, reading: Sequence[RowInput] = ()) -> Tensor:
        """Return the logits of every row's last token."""
        self.cache.aim(tokens.slots, tokens.positions)
        with self._cell.using(plan):
            output = self._base.model(
                input_ids=tokens.ids[None],
                position_ids=tokens.positions[None],
                attention_mask=_NO_MASK,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=tokens.last,
                spans=self._spans(tokens, plan.decoding, reading),
            )
        logits: Tensor = output.logits[0]
        return logits

    def _spans(self, tokens: Tokens, decoding: int, reading: Sequence[RowInput]) -> Spans:
        """Say how the tokens of placed rows, those that decode first, attend."""
        slots, positions = tokens.slots, tokens.positions
        if self._compiled:
            if not reading:
                everybody = torch.arange(len(slots), device=slots.device)
                return Spans(Singles(everybody, slots, positions), ())
            # By its position alone: so it does not depend on the chunk that a token comes in.
            early = positions < attention.TILE
            early[:decoding] = True
            singles = early.nonzero()[:, 0]
            first = Singles(singles, slots[singles], positions[singles]) if len(singles) else None
            tiles = _reading_spans(reading, decoding, positions, after=attention.TILE)
            return Spans(first, tiles)
        spans, order = _decoding_spans(slots[:decoding].tolist(), positions[:decoding])
        tiles = _reading_spans(reading, decoding, positions)
        if order is None:
            return Spans(None, spans + tiles)
        order += range(decoding, positions.shape[0])
        return Spans(None, spans + tiles, torch.tensor(order, device=positions.device))

    @property
    def packs(self) -> bool:
        """Whether adapters are packed besides being loaded."""
        return not self._compiled

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed adapters."""
        return self._planner.memory_bytes

    @property
    def recorded_bytes(self) -> int:
        """Bytes of recorded steps' memory."""
        return self._replay.memory_bytes if self._replay else 0

    def drop_all_but(self, adapters: Container[str]) -> None:
        """Let go of adapters that are not in memory any more."""
        self._planner.keep(adapters)

    @torch.inference_mode()
    def forget(self, slot: int) -> None:
        """Clear what a failed row may have left in its slot."""
        self.cache.clear(slot)


# Masks are made by `attention`; a mask of four axes is what models pass on as it is.
_NO_MASK = torch.zeros(1, 1, 1, 1)


def _place(row: RowInput) -> tuple[bool, Mixture, int]:
    return not row.decodes, row.mixture, row.slot


def _tokens(rows: Sequence[RowInput], order: Sequence[int], device: torch.device) -> Tokens:
    """Lay the tokens of placed rows one after another.

    Args:
        rows: As they are placed.
        order: The number that each has among the rows that were asked for.
        device: Where the tokens shall be.
    """
    ids = [token for row in rows for token in row.tokens]
    slots = [row.slot for row in rows for _ in row.tokens]
    positions = [row.start + i for row in rows for i in range(len(row.tokens))]
    ends = itertools.accumulate(len(row.tokens) for row in rows)
    last = [end - 1 for _, end in sorted(zip(order, ends, strict=True))]
    return Tokens(*(torch.tensor(item, device=device) for item in (ids, slots, positions, last)))


def _decoding_spans(slots: Sequence[int], positions: Tensor) -> tuple[list[Span], list[int] | None]:
    """Cut rows that decode into what attends together, and say in which order they lie there.

    Neighbours in the cache attend together, neighbours in the forward share adapters.
    """
    order = sorted(range(len(slots)), key=lambda i: slots[i])
    moved = order != list(range(len(slots)))
    if moved:
        positions = positions[torch.tensor(order, device=positions.device)]
    slots = [slots[i] for i in order]
    found = attention.decoding_spans(slots, positions.tolist())
    spans = [
        Span(
            slice(first, after),
            slice(slots[first], slots[first] + after - first),
            end,
            positions[first:after, None],
        )
        for first, after, end in found
    ]
    return spans, order if moved else None


def _reading_spans(
    rows: Sequence[RowInput], offset: int, positions: Tensor, *, after: int = 0
) -> list[Span]:
    """Cut the chunks of prompts, which begin after so many tokens, into tiles.

    Args:
        rows: One a chunk.
        offset: Tokens before the first of them.
        positions: Column of every token.
        after: Tiles that begin before this position are left out.
    """
    spans = []
    for row in rows:
        for first, stop, end in attention.reading_spans(row.start, len(row.tokens)):
            tokens = slice(offset, offset + stop - first)
            offset = tokens.stop
            if first >= after:
                slots = slice(row.slot, row.slot + 1)
                spans.append(Span(tokens, slots, end, positions[None, tokens]))
    return spans


def _check_attention(base: SharedBase) -> None:
    """Refuse a base whose attention does not go through transformers' interface, or does more."""
    model, config = base.model, base.model.config.get_text_config()
    what = ""
    if base.encodes:
        msg = f"{base.facts.id} is an encoder, which writes nothing: EncoderEngine serves it."
        raise ModelNotFound(msg)
    if not getattr(model, "_supports_attention_backend", False):
        what = "has attention of its own, outside transformers' attention interface"
    elif getattr(config, "attn_logit_softcapping", None):
        what = "caps its attention scores"
    elif config._attn_implementation == "eager":
        what = "attends in a way that only transformers' eager code computes"
    unknown = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if unknown:
        what = f"has layers of the kind {sorted(unknown)[0]!r}"
    if what:
        msg = (
            f"{base.facts.id} {what}: choose a base that attends fully or within a sliding window, "
            "such as Llama, Mistral, Qwen3, Gemma3 or Phi."
        )
        raise ModelNotFound(msg)
