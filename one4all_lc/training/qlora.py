"""Train one expert: a LoRA adapter on the NF4 base, with a card and a place in the library.

Source: QLoRA, https://arxiv.org/abs/2305.14314
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from one4all_lc.base.loading import DEFAULT_BASE, SharedBase
from one4all_lc.base.quiet import quiet
from one4all_lc.card import ExpertCard, check_name
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import (
    CONFIG_FILE,
    EXEMPLARS_FILE,
    WEIGHTS_FILE,
    Exemplar,
    Expert,
    read_expert,
    sha256_of,
    write_exemplars,
)
from one4all_lc.publishing import recover
from one4all_lc.training.data import Example, Row, encode, read_rows
from one4all_lc.training.proving import Publication
from one4all_lc.training.recipe import About, Recipe

if TYPE_CHECKING:
    from peft import PeftModel

EXEMPLARS_DRAWN = 40
"""How many training questions become exemplars where the folder has none."""


def train_expert(
    folder: str | Path,
    data: Sequence[str | Path],
    *,
    about: About | None = None,
    recipe: Recipe | None = None,
    base: str = DEFAULT_BASE,
    resume: bool = False,
    publication: Publication | None = None,
) -> Expert:
    """Train an expert from rows of data, measure it against the base, and put it in `folder`.

    Work goes on in a hidden folder beside it; `folder` changes at the very end, by renaming.

    Args:
        folder: The expert's folder, new or to be replaced; its name is the expert's.
        data: JSONL files of `training.data` rows.
        about: Title, description and the like; needed for a new expert.
        recipe: How to train.
        base: The base to train on, quantized as NF4.
        resume: Go on from the last checkpoint of a run that was stopped.
        publication: How the expert is measured, and whether it may replace what is in place.

    Raises:
        WorseExpert: The gate was asked for, and the expert measures worse than what is in place;
            it stays in the hidden folder.
        InvalidInput: The data or the description cannot be used.
        UnfitExpert: The folder's name or its present card cannot be used.
        ModelNotFound: No place holds the base.
    """
    folder, recipe = Path(folder).resolve(), recipe or Recipe()
    publication = publication or Publication()
    card = _card_facts(folder, about or About())
    rows = read_rows(data)
    # What the measuring needs is missed now rather than after the training.
    publication.check(card["metric"], rows)
    shared = SharedBase.load(base, quantization="nf4", shared=False)
    examples, left_out = _examples(rows, shared, card["system_prompt"], recipe)
    run = {"base": base, "recipe": asdict(recipe), "data": [sha256_of(Path(p)) for p in data]}
    work, made = _work_folder(folder, run, resume=resume)
    card["training"] = {
        "data": [Path(path).name for path in data],
        "license": card.pop("license"),
        "rows": len(examples),
        "rows_left_out": left_out,
        "base_quantization": shared.quantization,
        **asdict(recipe),
        **_fit(shared, examples, recipe, work, made),
    }
    card |= {"base": base, "fingerprint": shared.facts.fingerprint}
    card["weights_sha256"] = sha256_of(made / WEIGHTS_FILE)
    del shared  # the measuring loads the base as it is served
    _carry_over(folder, made)
    _give_exemplars(made, rows, recipe.seed)
    publication.publish(ExpertCard(**card), made, folder, rows)
    shutil.rmtree(work)
    return read_expert(folder)


def _examples(
    rows: Sequence[Row], shared: SharedBase, system_prompt: str, recipe: Recipe
) -> tuple[list[Example], int]:
    """Encode the training rows; return them and how many were too long."""
    learned = [row for row in rows if row.split == "train"]
    if not learned:
        msg = f"None of the {len(rows)} rows has split 'train': there is nothing to learn."
        raise InvalidInput(msg)
    examples, left_out = encode(learned, shared.tokenizer, system_prompt, recipe.max_tokens)
    if not examples:
        msg = (
            f"All {left_out} training rows are longer than {recipe.max_tokens} tokens: shorten "
            "their answers."
        )
        raise InvalidInput(msg)
    return examples, left_out


def _work_folder(folder: Path, run: dict[str, Any], *, resume: bool) -> tuple[Path, Path]:
    """Return the hidden folder of the run and the expert's folder in it, made if need be.

    Args:
        folder: Where the expert will lie.
        run: What decides the weights: a run goes on only as what it began as.
        resume: Keep the checkpoints that are there.
    """
    work = folder.parent / f".{folder.name}.training"
    began_as = work / "run.json"
    recover(folder)
    if work.exists() and not resume:
        shutil.rmtree(work)
    if began_as.exists() and json.loads(began_as.read_text(encoding="utf-8")) != run:
        msg = (
            f"The run in {work} began with another base, recipe or data: resume it with those, or "
            "start anew without --resume."
        )
        raise InvalidInput(msg)
    made = work / folder.name
    made.mkdir(parents=True, exist_ok=True)
    began_as.write_text(json.dumps(run), encoding="utf-8")
    return work, made


def _card_facts(folder: Path, about: About) -> dict[str, Any]:
    """Join what was given with what the present card says; the version counts up."""
    check_name(folder.name)
    old = ExpertCard.read(folder) if (folder / "expert.json").exists() else None
    present: dict[str, Any] = old.as_dict() if old else {}

    def kept(name: str, default: Any) -> Any:
        given = getattr(about, name)
        return present.get(name, default) if given is None else given

    description = kept("description", "")
    if not description.strip():
        msg = f"{folder.name!r} is new: describe in a sentence what it is for (--description)."
        raise InvalidInput(msg)
    return {
        "name": folder.name,
        "title": kept("title", folder.name.replace("_", " ").replace("-", " ").capitalize()),
        "description": description,
        "languages": kept("languages", ("en",)),
        "system_prompt": kept("system_prompt", ""),
        "generation": kept("generation", {}),
        "metric": kept("metric", "rouge_l"),
        "license": about.license or present.get("training", {}).get("license", "unknown"),
        "version": present.get("version", 0) + 1,
    }


def _fit(
    shared: SharedBase, examples: list[Example], recipe: Recipe, work: Path, made: Path
) -> dict[str, Any]:
    """Run the trainer and save the adapter into `made`; return what it took."""
    from transformers.trainer_utils import get_last_checkpoint

    from one4all_lc.training.trainer import ProgressBar, answer_trainer

    steps = recipe.steps or max(1, min(400, 3 * len(examples) // recipe.batch_rows))
    model = _with_adapter(shared, recipe)
    checkpoints = work / "checkpoints"
    with quiet(), ProgressBar() as bar:
        trainer = answer_trainer(model, examples, recipe, steps, checkpoints, bar)
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
        trainer.train(resume_from_checkpoint=last)
    _save_adapter(model, shared.facts.id, made)
    return {"steps": steps, "final_loss": round(_mean_of_last(trainer.state.log_history), 4)}


def _mean_of_last(history: Sequence[Mapping[str, float]], count: int = 10) -> float:
    losses = [entry["loss"] for entry in history if "loss" in entry][-count:]
    return sum(losses) / len(losses)


def _with_adapter(shared: SharedBase, recipe: Recipe) -> "PeftModel":
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(recipe.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules="all-linear",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's words with transformers
        return get_peft_model(shared.model, config)


def _save_adapter(model: "PeftModel", base: str, folder: Path) -> None:
    """Write PEFT's two files in bfloat16: half the size, and far finer than the training noise."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    # safetensors writes for the owner alone; an expert is for whoever may read the folder.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _carry_over(folder: Path, made: Path) -> None:
    """Keep what else lies in the expert's folder: its exemplars, a README."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and not (made / path.name).exists():
            shutil.copy2(path, made / path.name)


def _give_exemplars(made: Path, rows: Sequence[Row], seed: int) -> None:
    """Draw exemplars from the training questions where there are none."""
    if (made / EXEMPLARS_FILE).exists():
        return
    questions = sorted({row.question for row in rows if row.split == "train"})
    drawn = Random(seed).sample(questions, min(EXEMPLARS_DRAWN, len(questions)))
    write_exemplars(made, [Exemplar(text) for text in drawn])
