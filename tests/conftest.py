"""What several test files share: the real base, expert folders with random weights, data."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from one4all_lc.card import BaseFacts, ExpertCard
from one4all_lc.folder import CONFIG_FILE, WEIGHTS_FILE, Exemplar, sha256_of, write_exemplars

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "adapters"

MakeExpert = Callable[..., Path]


@pytest.fixture(scope="session")
def base_nf4():
    """The embedded base as it is served by default."""
    from one4all_lc.base.loading import SharedBase

    return SharedBase.load(quantization="nf4")


@pytest.fixture(scope="session")
def base_fp32():
    """The embedded base without rounding, to compare arithmetic with."""
    import torch

    from one4all_lc.base.loading import SharedBase

    return SharedBase.load(quantization="none", dtype=torch.float32)


@pytest.fixture(scope="session")
def data_folder():
    """The public data sets; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("ONE4ALL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the public data sets are not here: set ONE4ALL_DATA")
    return folder


@pytest.fixture
def make_expert(tmp_path) -> MakeExpert:
    """Return a function that writes an expert folder with random weights for a base."""

    def make(
        name: str,
        facts: BaseFacts,
        rank: int = 8,
        seed: int = 0,
        strength: float = 0.02,
        modules: Sequence[str] | None = None,
        exemplars: Sequence[str] = (),
        **card: object,
    ) -> Path:
        import torch
        from safetensors.torch import save_file

        folder = tmp_path / "experts" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for module in modules or facts.linears:
            out_features, in_features = facts.linears[module]
            prefix = f"base_model.model.{module}.lora_"
            a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
            b = torch.randn(out_features, rank, generator=generator) * strength
            tensors |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        leaves = sorted({module.rpartition(".")[2] for module in modules or facts.linears})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": facts.id,
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": leaves if modules is None else list(modules),
            "bias": "none",
            "inference_mode": True,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        write_exemplars(folder, [Exemplar(text) for text in exemplars or [f"about {name}"]])
        facts_of_card = {
            "name": name,
            "title": name,
            "description": f"Questions about {name}.",
            "base": facts.id,
            "fingerprint": facts.fingerprint,
            "weights_sha256": sha256_of(folder / WEIGHTS_FILE),
        }
        ExpertCard(**(facts_of_card | card)).write(folder)
        return folder

    return make
