"""Encoder experts with random weights, and what PEFT makes of the same texts."""

import torch
from torch.nn import functional

from one4all_lc.base.loading import SharedBase
from one4all_lc.folder import read_expert
from tests.experts import write_expert

KINDS = {
    "sentiment": {"kind": "classify", "labels": ("negative", "positive", "mixed")},
    "topics": {
        "kind": "classify",
        "labels": ("phone", "camera"),
        "head": {"several": True, "pooling": "first"},
    },
    "names": {"kind": "tag", "labels": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), "dense": True},
    "reader": {"kind": "extract"},
    "inference": {"kind": "pair", "labels": ("entails", "contradicts", "neither"), "dense": True},
}
"""Five experts, every kind of them."""


def five(parent, facts, **settings):
    """Write them; return what was read of their folders, by name."""
    return {
        name: read_expert(
            write_expert(parent / name, facts, rank=4 + i, seed=i, **(settings | kind)), facts
        )
        for i, (name, kind) in enumerate(KINDS.items())
    }


def peft_logits(model, expert, tokens, types=()):
    """Logits of one text through PEFT's own forward and the head as its formula says.

    Args:
        model: A fresh copy of the base's.
        expert: Whose adapter and head.
        tokens: Ids, special ones included.
        types: Token types, if any.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    tuned = PeftModel.from_pretrained(model, expert.folder).eval()
    head = load_file(expert.head_file)
    given = {"token_type_ids": torch.tensor([types])} if types else {}
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        hidden = tuned(
            input_ids=ids, attention_mask=torch.ones_like(ids), **given
        ).last_hidden_state[0]
    if expert.card.kind in ("classify", "pair"):
        first = expert.card.head.get("pooling") == "first"
        hidden = hidden[0] if first else hidden.mean(0)
    if "dense.weight" in head:
        hidden = functional.linear(hidden, head["dense.weight"], head["dense.bias"]).tanh()
    found = functional.linear(hidden, head["weight"], head["bias"])
    tuned.unload()
    return found


def fresh(base):
    """Return a copy of a base's model that nobody has changed, in float32."""
    return SharedBase.load(base, quantization="none", dtype=torch.float32, shared=False).model
