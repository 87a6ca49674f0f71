"""Full fine-tuning of the encoder beside the adapters that ship.

python -m tests.benchmarks.full_finetuning --rows DIR [--learning-rate 5e-5] [--json] [NAME ...]

Everything but the adapter is as in the expert's card: rows (what `adapters/prepare.py` writes),
steps, tokens of a step, seed, schedule, a new head, the threshold fitted on dev rows, and all test
rows asked of the engine. All weights of the encoder are learned, word embeddings included, in
float32, and computed in bfloat16 where the processor does so natively. A bar says by how much the
full fine-tuning is better.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from one4all_lc.base.loading import DEFAULT_ENCODER, SharedBase
from one4all_lc.card import ExpertCard
from one4all_lc.folder import WEIGHTS_FILE, sha256_of
from one4all_lc.training.data import Fields
from one4all_lc.training.kinds.examination import examine_kind
from one4all_lc.training.kinds.fitting import head_card, look_at_kind, reader_of
from one4all_lc.training.kinds.objective import Deciding, Reader
from one4all_lc.training.kinds.thresholds import with_threshold
from one4all_lc.training.progress import ProgressBar
from one4all_lc.training.qlora import with_adapter
from one4all_lc.training.recipe import Recipe
from one4all_lc.training.trainer import Training
from one4all_lc.training.work import save_adapter
from tests.benchmarks.harness import Bar, Rounds, report

ADAPTERS = Path(__file__).parents[2] / "adapters"
METRICS = {
    "review-sentiment": "accuracy",
    "fa-inference": "accuracy",
    "fa-entities": "entity_f1",
    "fa-reader": "answerable_f1",
    "fr-reader": "answerable_f1",
}

BOTH = ("adapter", "full")


class Whole(Reader):
    """An encoder that is learned itself, and its head."""

    def forward(self, **features: Tensor) -> Tensor:
        """Return the head's logits of tokenized texts."""
        natively = SharedBase.load(DEFAULT_ENCODER).dtype == torch.bfloat16
        device = features["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=natively):
            hidden = self.encoder(**features).last_hidden_state
        logits: Tensor = self.head(hidden.float(), features["attention_mask"])
        return logits


def tuned(name: str, rows: Path, learning_rate: float, steps: int | None) -> dict[str, Any]:
    """Fine-tune the encoder as an expert's card has it; return figures of both."""
    card = ExpertCard.read(ADAPTERS / name)
    recipe = Recipe(**_recipe(card.training["recipe"], learning_rate, steps))
    data = look_at_kind(card.kind, [rows], DEFAULT_ENCODER, recipe.max_tokens, Fields())
    assert data.labelling is not None
    shared = SharedBase.load(
        DEFAULT_ENCODER, quantization="none", dtype=torch.float32, shared=False
    )
    shared.model.requires_grad_(True)
    reader = reader_of(data.labelling, shared, shared.model)
    whole = Whole(reader.encoder, reader.head)
    with tempfile.TemporaryDirectory() as folder, ProgressBar() as bar:
        learned, dev = data.of_split("train"), data.of_split("dev")
        checkpoint, objective = Path(folder) / "checkpoint", Deciding(data.labelling, shared)
        Training(whole, learned, dev, recipe, checkpoint, bar, objective).run()
        checkpoint.unlink()
        base, made = Path(folder) / "base", Path(folder) / name
        shared.model.save_pretrained(base)
        shared.tokenizer.save_pretrained(base)
        made.mkdir()
        facts = _without_adapter(str(base), made) | head_card(
            whole, data.labelling, made, recipe.max_tokens
        )
        own = dataclasses.replace(card, name=name, base=str(base), metrics={}, **facts)
        with_threshold(own, made, data.rows).write(made)
        found = examine_kind(made, data.rows, str(base)).by_who["expert"]
    metric = METRICS[name]
    return {
        "metric": metric,
        "adapter": card.metrics[metric]["expert"],
        "full": round(found[metric].value, 4),
        "interval": [round(end, 4) for end in found[metric].interval()],
        "steps": recipe.steps,
        "learning_rate": learning_rate,
    }


def _recipe(of_card: Mapping[str, Any], learning_rate: float, steps: int | None) -> dict[str, Any]:
    given = {**of_card, "targets": tuple(of_card["targets"]), "learning_rate": learning_rate}
    return given | {"patience": 0, "steps": steps or of_card["steps"]}


def _without_adapter(base: str, made: Path) -> dict[str, Any]:
    """Write an adapter that adds nothing: an expert's folder has one."""
    shared = SharedBase.load(base, quantization="none", shared=False)
    save_adapter(with_adapter(shared, Recipe(rank=1, alpha=1)), base, made)
    return {
        "fingerprint": shared.facts.fingerprint,
        "weights_sha256": sha256_of(made / WEIGHTS_FILE),
    }


def bars_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Bar]:
    """Return by how much full fine-tuning is better, at most .02; null for what did not run."""
    return {
        f"{name.replace('-', '_')}_under_full": Bar(
            round(found[name]["full"] - found[name]["adapter"], 4) if name in found else None,
            0.02,
            at_most=True,
        )
        for name in METRICS
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all that ship")
    parser.add_argument("--rows", type=Path, required=True, help="what adapters/prepare.py wrote")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--steps", type=int, help="by default as many as the card says")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in arguments.names or _shipped():
        rows = arguments.rows / f"{name}.jsonl"
        found[name] = tuned(name, rows, arguments.learning_rate, arguments.steps)
    figures = {f"{name}: {who}": [it[who]] for name, it in found.items() for who in BOTH}
    report(Rounds(figures, {}), bars_of(found), arguments.json, unit="metric", experts=found)


def _shipped() -> Sequence[str]:
    return [name for name in METRICS if (ADAPTERS / name).is_dir()]


if __name__ == "__main__":
    main()
