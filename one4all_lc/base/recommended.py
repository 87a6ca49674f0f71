"""Bases that are worth starting from, and what they take of memory.

Figures are computed from each base's configuration, on the meta device: no weights are read. A base
that is at hand offline has its own configuration read, the others theirs from `RECOMMENDED`.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from one4all_lc.base.embedded import EMBEDDED
from one4all_lc.base.memory import Memory, memory_of
from one4all_lc.errors import InvalidInput


def _bert(vocabulary: int, **others: Any) -> dict[str, Any]:
    """Return the configuration of a BERT of the base size."""
    return {"model_type": "bert", "vocab_size": vocabulary, **others}


def _qwen3(hidden: int, wide: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }


def _smollm2(hidden: int, wide: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": True,
    }


@dataclass(frozen=True)
class Recommended:
    """A base that is worth starting from.

    Attributes:
        name: What people call it.
        id: Its hub id; None if none is public.
        languages: ISO 639-1 codes of what it was made for, or `100` for so many.
        encodes: Whether it is an encoder, for experts that decide.
        config: What its configuration says, as far as memory depends on it; empty if unknown.
        remark: What one should know of it.
    """

    name: str
    id: str | None
    languages: tuple[str, ...]
    encodes: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


_MANY = ("100 languages",)

_E5 = _bert(
    250037,
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=12,
    pad_token_id=1,
)

RECOMMENDED = (
    Recommended(
        "multilingual-e5-small",
        "intfloat/multilingual-e5-small",
        _MANY,
        True,
        _E5,
        "from the package index; the router's embedder",
    ),
    Recommended(
        "ParsBERT",
        "HooshvareLab/bert-base-parsbert-uncased",
        ("fa",),
        True,
        _bert(100000),
    ),
    Recommended(
        "ParsBERT 3",
        "HooshvareLab/bert-fa-zwnj-base",
        ("fa",),
        True,
        _bert(42000),
        "keeps half-spaces",
    ),
    Recommended("mBERT", "google-bert/bert-base-multilingual-cased", _MANY, True, _bert(119547)),
    Recommended(
        "CamemBERT",
        "almanach/camembert-base",
        ("fr",),
        True,
        {
            "model_type": "camembert",
            "vocab_size": 32005,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    ),
    Recommended(
        "SaadiBERT",
        None,
        ("fa",),
        True,
        remark="Persian medicine; no public id is known: give the path of its folder as the base",
    ),
    Recommended(
        "SmolLM2 135M",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("en",),
        False,
        _smollm2(576, 1536, 30, 9, 3),
        "from the package index; the default",
    ),
    Recommended(
        "SmolLM2 360M",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        ("en",),
        False,
        _smollm2(960, 2560, 32, 15, 5),
    ),
    Recommended(
        "SmolLM2 1.7B",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        ("en",),
        False,
        _smollm2(2048, 8192, 24, 32, 32),
    ),
    Recommended("Qwen3 0.6B", "Qwen/Qwen3-0.6B", _MANY, False, _qwen3(1024, 3072, 28, 16)),
    Recommended("Qwen3 1.7B", "Qwen/Qwen3-1.7B", _MANY, False, _qwen3(2048, 6144, 28, 16)),
    Recommended("Qwen3 4B", "Qwen/Qwen3-4B", _MANY, False, _qwen3(2560, 9728, 36, 32)),
)


@dataclass(frozen=True)
class BaseRow:
    """One row of the table.

    Attributes:
        name: What people call it.
        id: Its hub id, or the path that was given.
        languages: What it was made for.
        kind: `encoder` or `decoder`.
        memory: None if its configuration is unknown.
        at_hand: Whether it loads without a network.
        remark: What one should know of it.
    """

    name: str
    id: str | None
    languages: tuple[str, ...]
    kind: str
    memory: Memory | None
    at_hand: bool
    remark: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def rows(saadibert: str | None = None) -> list[BaseRow]:
    """Return the table.

    Args:
        saadibert: The folder of SaadiBERT, for whoever has it.

    Raises:
        InvalidInput: There is no such folder, or no model's configuration in it.
    """
    found = []
    for item in RECOMMENDED:
        path = saadibert if item.id is None else None
        config = _config(item, path)
        found.append(
            BaseRow(
                item.name,
                path or item.id,
                item.languages,
                "encoder" if item.encodes else "decoder",
                memory_of(config, encodes=item.encodes) if config is not None else None,
                path is not None or (item.id is not None and at_hand(item.id)),
                item.remark,
            )
        )
    return found


def at_hand(model_id: str) -> bool:
    """Whether a base loads without a network: unpacked, or in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    entry = EMBEDDED.get(model_id)
    if entry is not None and entry.target.is_dir():
        return True
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(model_id, name), str) for name in weights)


def _config(item: Recommended, path: str | None) -> Any:
    from transformers import AutoConfig

    if path is not None:
        if not os.path.isfile(os.path.join(os.path.expanduser(path), "config.json")):
            msg = f"There is no model at {path!r}: give the folder that has its config.json."
            raise InvalidInput(msg)
        return AutoConfig.from_pretrained(os.path.expanduser(path))
    if not item.config:
        return None
    given = dict(item.config)
    return AutoConfig.for_model(given.pop("model_type"), **given)
