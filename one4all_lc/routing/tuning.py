"""The embedder learns to tell the experts apart: a small LoRA, trained on nothing but exemplars.

Exemplars of one expert are drawn together and those of different experts apart (supervised
contrastive loss over all pairs of a batch; SetFit's recipe of tuning on exemplars alone), by
sentence-transformers' own trainer. Source: Tunstall et al., Efficient few-shot learning without
prompts, 2022; Khosla et al., Supervised contrastive learning, 2020.
"""

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from one4all_lc.errors import InvalidInput
from one4all_lc.training.borrowed import run, silent_arguments

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from one4all_lc.training.progress import Watcher

LINEARS = ("query", "key", "value", "dense", "q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
"""The linear layers of BERT and its relatives, by their last name."""


@dataclass(frozen=True)
class TuningRecipe:
    """How the embedder's adapter is trained.

    Attributes:
        rank: Of the LoRA; its scale is twice that.
        epochs: Passes over the exemplars, where that is no more than `most_steps`.
        most_steps: Steps at most.
        batch: Exemplars of a step: every pair among them is compared.
        learning_rate: At its highest.
        temperature: Of the loss.
        seed: Of the order, the LoRA's start and dropout.
    """

    rank: int = 16
    epochs: int = 6
    most_steps: int = 200
    batch: int = 100
    learning_rate: float = 5e-4
    temperature: float = 0.1
    seed: int = 0

    def steps(self, count: int) -> int:
        """Return the number of steps for so many exemplars."""
        return max(1, min(self.most_steps, self.epochs * math.ceil(count / self.batch)))


def train_adapter(
    model: "SentenceTransformer",
    texts: Sequence[str],
    owners: Sequence[int],
    recipe: TuningRecipe,
    watcher: "Watcher",
) -> list[float]:
    """Give an embedder a LoRA and train it, in place; its own weights stay as they are.

    Args:
        model: The embedder.
        texts: The n exemplars.
        owners: The n experts' numbers.
        recipe: How.
        watcher: Is told of the steps.

    Returns:
        The losses, step by step.

    Raises:
        InvalidInput: The embedder has no layers that can be tuned, `datasets` is not installed, or
            the loss is no number.
    """
    from peft import LoraConfig, TaskType

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = [name for name in LINEARS if name in names]
    if not targets:
        msg = f"{type(model[0]).__name__} has none of the layers {LINEARS}: it cannot be tuned."
        raise InvalidInput(msg)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.1,
        target_modules=targets,
    )
    model.add_adapter(config)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(model, texts, owners, recipe, watcher, folder)


def _run(
    model: "SentenceTransformer",
    texts: Sequence[str],
    owners: Sequence[int],
    recipe: TuningRecipe,
    watcher: "Watcher",
    folder: str,
) -> list[float]:
    trained, rows_of = _needed("sentence_transformers"), _needed("datasets").Dataset.from_dict
    steps = recipe.steps(len(texts))

    arguments = trained.SentenceTransformerTrainingArguments(
        per_device_train_batch_size=min(recipe.batch, len(texts)),
        learning_rate=recipe.learning_rate,
        warmup_steps=max(1, steps // 10),
        lr_scheduler_type="linear",
        seed=recipe.seed,
        **silent_arguments(folder, steps),
    )
    trainer = trained.SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows_of({"sentence": list(texts), "label": list(owners)}),
        loss=_contrastive(model, recipe.temperature),
    )
    return run(trainer, steps, recipe.learning_rate, watcher)


def _contrastive(model: "SentenceTransformer", temperature: float) -> Any:
    """Return the supervised contrastive loss as a module, as the trainer takes it."""
    import torch
    from torch import nn

    class Contrastive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Sequence[dict[str, "Tensor"]], labels: "Tensor") -> "Tensor":
            vectors = self.model(features[0])["sentence_embedding"]
            vectors = nn.functional.normalize(vectors, dim=-1)  # (n, d)
            itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
            scores = (vectors @ vectors.T / temperature).masked_fill(itself, -1e4)  # (n, n)
            logs = scores.log_softmax(1)
            mates = (labels[:, None] == labels[None]) & ~itself
            loss = (logs * mates).sum(1) / mates.sum(1).clamp(min=1)
            return -loss.mean()

    return Contrastive()


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        msg = f"finetune needs {module}: pip install 'one4all_lc[datasets]'."
        raise InvalidInput(msg) from None
