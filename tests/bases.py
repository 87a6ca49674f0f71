"""Tiny random checkpoints with the embedded base's tokenizer, for tests that train."""

from pathlib import Path

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GEMMA3 = {
    "num_hidden_layers": 3,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def write_base(folder: Path, kind: str = "llama", **settings: object) -> str:
    """Write a checkpoint that NF4 quantizes; return its path.

    Args:
        folder: Where.
        kind: The architecture's `model_type`.
        **settings: Of its configuration, where they differ.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from one4all_lc.base.embedded import resolve
    from one4all_lc.base.loading import DEFAULT_BASE

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(DEFAULT_BASE))
    config = AutoConfig.for_model(kind, **(SMALL | {"vocab_size": len(tokenizer)} | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
