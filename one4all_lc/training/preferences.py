"""Go on with an expert from pairs of answers, of which people prefer one.

Source: Direct Preference Optimization, https://arxiv.org/abs/2305.18290, by TRL's DPOTrainer.
"""

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.base.loading import SharedBase
from one4all_lc.base.quiet import quiet
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert, read_expert
from one4all_lc.training.borrowed import run, silent_arguments
from one4all_lc.training.data import Example, Fields, Row, encoded, read_rows
from one4all_lc.training.evaluation import rouge_l
from one4all_lc.training.progress import ProgressBar, Watcher
from one4all_lc.training.qlora import Making, finished, repeatable, training_base
from one4all_lc.training.recipe import About
from one4all_lc.training.work import card_facts, data_facts, save_adapter, versions, work_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


@dataclass(frozen=True)
class Pair:
    """A question with two answers, as token ids.

    Attributes:
        chosen: The prompt and the answer that is preferred.
        rejected: The same prompt and the other one.
    """

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class PreferenceRecipe:
    """How preferences are learned.

    Attributes:
        beta: How dear it is to leave the expert as it was.
        learning_rate: Its peak.
        passes: Over the pairs.
        batch_pairs: Pairs of a step.
        max_tokens: Pairs with a longer answer are left out.
        seed: Of the order.
    """

    beta: float = 0.1
    learning_rate: float = 5e-5
    passes: float = 1.0
    batch_pairs: int = 8
    max_tokens: int = 512
    seed: int = 0


def read_pairs(paths: Iterable[str | Path]) -> list[tuple[Row, Row]]:
    """Read `{"question", "chosen", "rejected"}`, with optional `context`, `columns` and `split`.

    Args:
        paths: Files and folders as of `data.read_rows`.

    Returns:
        For each pair the row of the preferred answer and that of the other.

    Raises:
        InvalidInput: A line is not such a pair; the message names the file and the line.
    """
    paths = list(paths)
    chosen = read_rows(paths, Fields(answer="chosen"))
    rejected = read_rows(paths, Fields(answer="rejected"))
    for one, other in zip(chosen, rejected, strict=True):
        if one.answer == other.answer:
            msg = f"{one.place} prefers an answer to itself: {one.answer[:80]!r}; leave it out."
            raise InvalidInput(msg)
    if not any(row.split == "train" for row in chosen):
        msg = f"None of the {len(chosen)} pairs has split 'train': there is nothing to learn."
        raise InvalidInput(msg)
    return list(zip(chosen, rejected, strict=True))


def prefer(
    folder: str | Path,
    pairs: Sequence[str | Path],
    *,
    data: Sequence[str | Path] = (),
    recipe: PreferenceRecipe | None = None,
    base: str | None = None,
) -> Expert:
    """Teach an expert which answers people prefer; what it was is what it may not stray far from.

    Args:
        folder: The expert, which a new version takes the place of.
        pairs: Files of pairs, see `read_pairs`; held-out ones are measured before and after.
        data: Rows to measure the new version on against the base, as in training.
        recipe: How.
        base: The base, if it is to be found under another id than the card's.

    Raises:
        InvalidInput: The pairs cannot be used, or TRL is not installed.
        UnfitExpert: The expert must not be used.
    """
    _needs_trl()
    folder, recipe = Path(folder).resolve(), recipe or PreferenceRecipe()
    old = read_expert(folder)
    read, rows = read_pairs(pairs), read_rows(data)
    rouge_l()
    shared = training_base(base or old.card.base, "nf4", recipe.max_tokens)
    expert = read_expert(folder, shared.facts)
    encoded_pairs = _encoded(read, shared, expert, recipe.max_tokens)
    run: dict[str, Any] = {"preferences": dataclasses.asdict(recipe), "data": data_facts(pairs)}
    work, made = work_folder(folder, run, resume=False)
    card = card_facts(folder, About())
    card.pop("license")
    learned = _learn(shared, expert, encoded_pairs, recipe, made)
    facts = {**run["preferences"], "data": run["data"], **learned, "versions": versions()}
    card["training"] = {**old.card.training, "preferences": facts}
    card |= {"base": old.card.base, "fingerprint": shared.facts.fingerprint}
    del shared
    return finished(Making(folder, work, made, card, rows, (), recipe.seed))


def _needs_trl() -> None:
    try:
        import trl  # noqa: F401
    except ImportError:
        msg = "Learning preferences needs TRL: pip install 'one4all_lc[preferences]'."
        raise InvalidInput(msg) from None


def _encoded(
    pairs: Sequence[tuple[Row, Row]], shared: SharedBase, expert: Expert, max_tokens: int
) -> dict[str, list[Pair]]:
    """Return the pairs that are short enough, by split: `train` and what is held out."""
    found: dict[str, list[Pair]] = {"train": [], "held out": []}
    prompt = expert.card.system_prompt
    for rows in pairs:
        pair = Pair(*(encoded(row, shared.tokenizer, prompt) for row in rows))
        if max(len(pair.chosen), len(pair.rejected)) <= max_tokens:
            found["train" if rows[0].split == "train" else "held out"].append(pair)
    if not found["train"]:
        msg = f"All pairs are longer than {max_tokens} tokens: shorten their answers."
        raise InvalidInput(msg)
    return found


def _learn(
    shared: SharedBase,
    expert: Expert,
    pairs: Mapping[str, Sequence[Pair]],
    recipe: PreferenceRecipe,
    made: Path,
) -> dict[str, Any]:
    """Train, and save the adapter into `made`; return what there is to say of it."""
    from peft import PeftModel

    from one4all_lc.base.quantized import stay_differentiable

    model = PeftModel.from_pretrained(shared.model, str(expert.folder), is_trainable=True)
    stay_differentiable(model)
    before = preferred_share(model, pairs["held out"])
    steps = max(1, math.ceil(recipe.passes * len(pairs["train"]) / recipe.batch_pairs))
    with quiet(), ProgressBar() as bar, repeatable(shared.device):
        losses = _run(model, shared, pairs["train"], recipe, steps, bar)
    stay_differentiable(model)
    after = preferred_share(model, pairs["held out"])
    save_adapter(model, shared.facts.id, made)
    return {
        "pairs": len(pairs["train"]),
        "steps": steps,
        "first_loss": round(losses[0], 4),
        "final_loss": round(losses[-1], 4),
        "held_out": {"pairs": len(pairs["held out"]), "before": before, "after": after},
    }


def _run(
    model: "PeftModel",
    shared: SharedBase,
    pairs: Sequence[Pair],
    recipe: PreferenceRecipe,
    steps: int,
    watcher: Watcher,
) -> list[float]:
    """Run TRL's trainer on what is tokenized already; return the losses by step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class AsTokenized(DPOTrainer):  # type: ignore[misc]
        """Takes prompts as the expert is asked, by `render`, and does not render them itself."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = DPOConfig(
            beta=recipe.beta,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_pairs,
            max_length=recipe.max_tokens,
            lr_scheduler_type="cosine",
            gradient_checkpointing=False,
            bf16=False,
            seed=recipe.seed,
            **silent_arguments(folder, steps),
        )
        rows = Dataset.from_list([_as_trl(pair) for pair in pairs])
        trainer = AsTokenized(
            model=model, args=arguments, train_dataset=rows, processing_class=shared.tokenizer
        )
        _in_full(model)
        return run(trainer, steps, recipe.learning_rate, watcher)


def _in_full(model: "nn.Module") -> None:
    """Keep adapters in float32: TRL halves them on a quantized base, too coarse for small steps."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _as_trl(pair: Pair) -> dict[str, list[int]]:
    return {
        "prompt_ids": list(pair.chosen.prompt),
        "chosen_ids": list(pair.chosen.answer),
        "rejected_ids": list(pair.rejected.answer),
    }


def preferred_share(model: "nn.Module", pairs: Sequence[Pair]) -> float | None:
    """Return how often the preferred answer is the likelier one; None without pairs."""
    import torch

    from one4all_lc.training.batches import answer_loss, collate

    if not pairs:
        return None
    device = next(model.parameters()).device
    right = 0
    with torch.no_grad():
        for pair in pairs:
            losses = [
                float(
                    answer_loss(
                        model, {name: item.to(device) for name, item in collate([example]).items()}
                    )
                )
                for example in (pair.chosen, pair.rejected)
            ]
            right += losses[0] < losses[1]
    return round(right / len(pairs), 4)
