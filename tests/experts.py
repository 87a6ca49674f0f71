"""Expert folders with random weights, for tests and benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from one4all_lc.card import BaseFacts, ExpertCard
from one4all_lc.folder import CONFIG_FILE, WEIGHTS_FILE, Exemplar, sha256_of, write_exemplars


def write_expert(
    folder: Path,
    facts: BaseFacts,
    rank: int = 8,
    seed: int = 0,
    strength: float = 0.02,
    modules: Sequence[str] | None = None,
    exemplars: Sequence[str] = (),
    kind: str = "chat",
    labels: Sequence[str] = (),
    dense: bool = False,
    head: Mapping[str, object] | None = None,
    **card: object,
) -> Path:
    """Write an expert folder with random weights, whole enough for PEFT and vLLM too.

    Args:
        folder: Where; it must not exist, and its name becomes the expert's.
        facts: The base.
        rank: Of every factor.
        seed: Of the weights.
        strength: Standard deviation of B; a small one leaves the base's answers sensible.
        modules: Paths of the linear layers that are adapted; by default all.
        exemplars: Questions of its domain; by default one made from its name.
        kind: Of another one than `chat` there is a random head too.
        labels: Of the head.
        dense: Whether the head has a layer before the last.
        head: What its card says of the head besides: pooling, threshold.
        **card: Fields of the card that shall differ.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    _write_weights(folder / WEIGHTS_FILE, facts, rank, seed, strength, modules or facts.linears)
    leaves = sorted({module.rpartition(".")[2] for module in facts.linears})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if kind == "chat" else "FEATURE_EXTRACTION",
        "base_model_name_or_path": facts.id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": leaves if modules is None else list(modules),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    name = folder.name
    write_exemplars(folder, [Exemplar(text) for text in exemplars or [f"about {name}"]])
    fields = {
        "name": name,
        "title": name,
        "description": f"Questions about {name}.",
        "base": facts.id,
        "fingerprint": facts.fingerprint,
        "weights_sha256": sha256_of(folder / WEIGHTS_FILE),
    }
    if kind != "chat":
        told = _write_head(folder, kind, tuple(labels), facts.width, seed, dense, head or {})
        fields |= {"kind": kind, "labels": tuple(labels), "head": told}
    ExpertCard(**(fields | card)).write(folder)
    return folder


def _write_head(
    folder: Path,
    kind: str,
    labels: tuple[str, ...],
    width: int,
    seed: int,
    dense: bool,
    told: Mapping[str, object],
) -> dict[str, object]:
    import torch

    from one4all_lc.base.heads import Head

    head = Head(kind, labels, width, dense=dense)
    generator = torch.Generator().manual_seed(seed)
    for tensor in head.tensors.values():
        tensor.data = torch.randn(tensor.shape, generator=generator) * width**-0.5
    return head.save(folder, **told).as_dict()


def _write_weights(
    file: Path, facts: BaseFacts, rank: int, seed: int, strength: float, modules: Sequence[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        out_features, in_features = facts.linears[module]
        prefix = f"base_model.model.{module}.lora_"
        a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
        b = torch.randn(out_features, rank, generator=generator) * strength
        tensors |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
    save_file(tensors, file, metadata={"format": "pt"})


def write_tiny_base(folder: Path) -> Path:
    """Write a random llama that NF4 quantizes, with the embedded base's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from one4all_lc.base.embedded import resolve
    from one4all_lc.base.loading import DEFAULT_BASE

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(DEFAULT_BASE))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
