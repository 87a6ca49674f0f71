"""The hidden folder that a training works in, beside the expert's own, until that is replaced."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import one4all_lc
from one4all_lc.card import CARD_FILE, KINDS, METRICS_OF, ExpertCard, check_name, facts_for_people
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import (
    CONFIG_FILE,
    EXEMPLARS_FILE,
    WEIGHTS_FILE,
    Exemplar,
    sha256_of,
    write_exemplars,
)
from one4all_lc.head import CHAT
from one4all_lc.publishing import recover
from one4all_lc.training.curve import CURVE_FILE
from one4all_lc.training.data import Row
from one4all_lc.training.recipe import About
from one4all_lc.training.sources import source_files

if TYPE_CHECKING:
    from peft import PeftModel

EXEMPLARS_DRAWN = 40
"""How many training questions become exemplars where the folder has none."""

CHECKPOINT_FILE = "checkpoint.safetensors"

_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def work_folder(folder: Path, run: dict[str, Any], *, resume: bool) -> tuple[Path, Path]:
    """Return the hidden folder of a run and the expert's folder in it, made if need be.

    Args:
        folder: Where the expert will lie.
        run: What decides the weights: a run goes on only as what it began as.
        resume: Keep the checkpoint that is there.

    Raises:
        InvalidInput: The run that is there began otherwise.
    """
    work = folder.parent / f".{folder.name}.training"
    began_as = work / "run.json"
    recover(folder)
    if not resume:
        discard(work)
    if began_as.exists() and json.loads(began_as.read_text(encoding="utf-8")) != run:
        msg = (
            f"The run in {work} began with another base, recipe or data: resume it with those, or "
            "start anew without --resume."
        )
        raise InvalidInput(msg)
    made = work / folder.name
    made.mkdir(parents=True, exist_ok=True)
    partial = began_as.with_suffix(".partial")
    partial.write_text(json.dumps(run), encoding="utf-8")
    partial.replace(began_as)
    return work, made


def discard(work: Path) -> None:
    """Remove a work folder at once: whoever is killed meanwhile leaves nothing to go on from."""
    old = work.with_name(f"{work.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a removal that was cut off
    if work.exists():
        work.rename(old)
        shutil.rmtree(old)


def card_facts(folder: Path, about: About) -> dict[str, Any]:
    """Join what was given with what the present card says; the version counts up.

    Raises:
        InvalidInput: A new expert has no description, or what is there is of another kind.
        UnfitExpert: No expert may bear the folder's name, or its card cannot be read.
    """
    check_name(folder.name)
    old = ExpertCard.read(folder) if (folder / CARD_FILE).exists() else None
    present: dict[str, Any] = old.as_dict() if old else {}

    said = facts_for_people(folder.name, about, present)
    kind = about.kind or present.get("kind", CHAT)
    if kind not in KINDS or (old and kind != old.kind):
        known = f"is a {old.kind} expert" if old else f"can be one of {list(KINDS)}"
        msg = f"{folder.name!r} {known}, not of kind {kind!r}: name another folder or kind."
        raise InvalidInput(msg)
    return {
        "name": folder.name,
        "kind": kind,
        "metric": about.metric or present.get("metric", METRICS_OF[kind][0]),
        **said,
        "version": present.get("version", 0) + 1,
    }


def data_facts(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return what a card says of its data: each file by a path that is no one's own, and its hash.

    Args:
        paths: Files and folders; of a folder every file is named.
    """
    facts = []
    for path in map(Path, paths):
        for file in source_files(path):
            inside = file.relative_to(path) if file != path else Path()
            shown = (Path(path.name) if path.is_absolute() else path) / inside
            facts.append({"file": shown.as_posix(), "sha256": sha256_of(file)})
    return facts


def versions() -> dict[str, str]:
    """Return the versions that the weights depend on."""
    found = {"one4all_lc": one4all_lc.__version__}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra
            continue
    return found


def save_adapter(model: "PeftModel", base: str, folder: Path) -> None:
    """Write PEFT's two files in bfloat16: half the size, and far finer than the training noise."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    # safetensors writes for the owner alone; an expert is for whoever may read the folder.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def carry_over(folder: Path, made: Path) -> None:
    """Keep what else lies in the expert's folder: its exemplars, a README."""
    for path in folder.iterdir() if folder.is_dir() else ():
        new = path.name == CURVE_FILE or (made / path.name).exists()
        if path.is_file() and not new:
            shutil.copy2(path, made / path.name)


def give_exemplars(made: Path, given: Sequence[Exemplar], rows: Sequence[Row], seed: int) -> None:
    """Write the exemplars that were given; draw training questions if there are none at all."""
    if given:
        write_exemplars(made, given)
    elif not (made / EXEMPLARS_FILE).exists():
        questions = sorted({row.question for row in rows if row.split == "train"})
        drawn = Random(seed).sample(questions, min(EXEMPLARS_DRAWN, len(questions)))
        write_exemplars(made, [Exemplar(text) for text in drawn])
