"""Train one expert: a LoRA adapter on the NF4 base, with a card and a place in the library.

Experts that write and experts that decide are trained alike; `training.kinds` has what the latter
learn.

Source: QLoRA, https://arxiv.org/abs/2305.14314
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from one4all_lc.base.loading import DEFAULT_BASE, DEFAULT_ENCODER, SharedBase, load_tokenizer
from one4all_lc.base.quiet import quiet
from one4all_lc.card import ExpertCard
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import (
    WEIGHTS_FILE,
    Exemplar,
    Expert,
    read_exemplars_file,
    sha256_of,
)
from one4all_lc.head import CHAT
from one4all_lc.training.checking import DataReport, check
from one4all_lc.training.curve import CURVE_FILE, loss_curve
from one4all_lc.training.data import Fields, Row
from one4all_lc.training.kinds.examples import Labelling
from one4all_lc.training.kinds.fitting import head_card, look_at_kind, reader_of
from one4all_lc.training.progress import ProgressBar, Watcher
from one4all_lc.training.proving import Publication
from one4all_lc.training.recipe import ALL_LINEAR, About, Recipe
from one4all_lc.training.work import (
    CHECKPOINT_FILE,
    card_facts,
    carry_over,
    data_facts,
    discard,
    give_exemplars,
    save_adapter,
    versions,
    work_folder,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from one4all_lc.training.trainer import Objective


def train_expert(
    folder: str | Path,
    data: Sequence[str | Path],
    *,
    about: About | None = None,
    recipe: Recipe | None = None,
    base: str | None = None,
    resume: bool = False,
    fields: Fields | None = None,
    exemplars: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    look: Callable[[DataReport], None] | None = None,
    publication: Publication | None = None,
) -> Expert:
    """Train an expert from rows of data, measure it against the base, and put it in `folder`.

    Work goes on in a hidden folder beside it; `folder` changes at the very end, by renaming.

    Args:
        folder: The expert's folder, new or to be replaced; its name is the expert's.
        data: Files and folders of `training.data` rows, or for experts that decide of
            `training.kinds.rows`.
        about: Title, description, kind and the like; needed for a new expert.
        recipe: How to train; what it leaves open is decided by the size of the data.
        base: The base to train on; by default `default_base` of the kind.
        resume: Go on from the last checkpoint of a run that was stopped.
        fields: What the data calls its fields.
        exemplars: A file of exemplars to give the expert; by default those that it has.
        facts: What else its card says of the training.
        look: Is called with what was found in the data, before anything is trained, if it can be.
        publication: How it is measured, and whether it may replace what is in place.

    Raises:
        WorseExpert: The gate was asked for, and the expert measures worse than what is in place;
            it stays in the hidden folder.
        InvalidInput: The data or the description cannot be used.
        UnfitExpert: The folder's name, its present card or the exemplars cannot be used.
        ModelNotFound: No place holds the base.
    """
    folder, recipe = Path(folder).resolve(), recipe or Recipe()
    card = card_facts(folder, about or About())
    kind = card["kind"]
    base = base or default_base(kind)
    given = _exemplars(Path(exemplars)) if exemplars else ()
    publication = publication or Publication()
    # What measuring needs is missed now rather than after the training.
    publication.check(card["metric"], kind)
    report = look_at(data, base, recipe, fields, card["system_prompt"], kind)
    report.raise_refused()
    if look:
        look(report)
    publication.check_rows(report.rows)
    learned = report.of_split("train")
    recipe = recipe.for_data([len(example) for example in learned], decides=kind != CHAT)
    run = {"base": base, "recipe": recipe.as_dict(), "data": data_facts(data)}
    run |= {"system_prompt": card["system_prompt"], "kind": kind}
    work, made = work_folder(folder, run, resume=resume)
    card["training"] = {
        "data": run["data"],
        "license": card.pop("license"),
        "rows": sum(row.split == "train" for row in report.rows),
        "rows_left_out": report.left_out,
        "dev_rows": sum(row.split == "dev" for row in report.rows),
        "recipe": run["recipe"],
        "fields": asdict(fields or Fields()),
        **(facts or {}),
    }
    made_by = _fit(base, report, recipe, work, made)
    card["training"] |= made_by.facts
    card |= {"base": base, "fingerprint": made_by.fingerprint, **made_by.head}
    making = Making(folder, work, made, card, report.rows, given, recipe.seed)
    return finished(making, publication)


def default_base(kind: str) -> str:
    """Return the embedded base that experts of a kind are made on."""
    return DEFAULT_BASE if kind == CHAT else DEFAULT_ENCODER


def _exemplars(path: Path) -> tuple[Exemplar, ...]:
    try:
        return read_exemplars_file(path)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): name a file of exemplars."
        raise InvalidInput(msg) from error


@dataclass(frozen=True)
class Making:
    """An expert that has been trained and is not in its place yet.

    Attributes:
        folder: Its place.
        work: The hidden folder of the run.
        made: The expert's folder in it; the adapter is there.
        card: The fields of its card, without metrics and hash.
        rows: Data; what is held out in it is measured.
        exemplars: Those that were given for it.
        seed: Of the exemplars that are drawn if there are none.
    """

    folder: Path
    work: Path
    made: Path
    card: dict[str, Any]
    rows: Sequence[Row]
    exemplars: Sequence[Exemplar]
    seed: int


def finished(making: Making, publication: Publication | None = None) -> Expert:
    """Write the card, measure the expert against the base, and put it into its place."""
    folder, made = making.folder, making.made
    card = making.card | {"weights_sha256": sha256_of(made / WEIGHTS_FILE)}
    carry_over(folder, made)
    give_exemplars(made, making.exemplars, making.rows, making.seed)
    how = publication or Publication()
    expert = how.publish(ExpertCard(**card), made, folder, making.rows)
    discard(making.work)
    return expert


def look_at(
    data: Sequence[str | Path],
    base: str,
    recipe: Recipe,
    fields: Fields | None = None,
    system_prompt: str = "",
    kind: str = CHAT,
) -> DataReport:
    """Look at the data as a training would; refuse nothing yet."""
    if kind != CHAT:
        return look_at_kind(kind, data, base, recipe.max_tokens, fields)
    tokenizer, most = load_tokenizer(base), recipe.max_tokens
    return check(data, tokenizer, fields=fields, system_prompt=system_prompt, max_tokens=most)


@dataclass(frozen=True)
class _Fitted:
    """What a training gives beside the adapter's files."""

    fingerprint: Any
    facts: dict[str, Any]
    head: dict[str, Any]


def _fit(base: str, report: DataReport, recipe: Recipe, work: Path, made: Path) -> _Fitted:
    """Run the training and save the adapter into `made`."""
    from one4all_lc.training.memory import forget_peak, peak_bytes
    from one4all_lc.training.trainer import Training

    labelling: Labelling | None = report.labelling
    shared = training_base(base, recipe.quantization, recipe.max_tokens)
    forget_peak(shared.device)
    model = with_adapter(shared, recipe)
    learner, objective = _learner(model, labelling, shared)
    learned, dev = report.of_split("train"), report.of_split("dev")
    with quiet(), ProgressBar() as bar, repeatable(shared.device):
        checkpoint = work / CHECKPOINT_FILE
        standing = Training(learner, learned, dev, recipe, checkpoint, bar, objective).run()
        peak = peak_bytes(shared.device)
        _note_memory(bar, peak, shared.device)
    save_adapter(model, shared.facts.id, made)
    head = head_card(learner, labelling, made, recipe.max_tokens) if labelling else {}
    drawn = loss_curve(standing, made / CURVE_FILE, f"{made.name} on {base}")
    facts = {
        "base_quantization": shared.quantization,
        "steps": standing.step,
        "best_step": standing.best_step or standing.step,
        "first_loss": round(standing.losses[0], 4),
        "final_loss": round(standing.final_loss, 4),
        "dev_losses": [[step, round(loss, 4)] for step, loss in standing.dev_losses],
        "tokens": standing.tokens,
        "padding": round(standing.padding / (standing.padding + standing.tokens), 4),
        "seconds": round(standing.seconds, 1),
        "tokens_per_second": round(standing.tokens / standing.seconds, 1),
        "peak_memory_bytes": peak,
        "device": str(shared.device),
        "curve": CURVE_FILE if drawn else None,
        "versions": versions(),
    }
    return _Fitted(shared.facts.fingerprint, facts, head)


def _learner(
    model: "PeftModel", labelling: Labelling | None, shared: SharedBase
) -> tuple[Any, "Objective"]:
    """Return the module that learns, and what."""
    from one4all_lc.training.kinds.objective import Deciding
    from one4all_lc.training.trainer import Answers

    if labelling is None:
        return model, Answers()
    return reader_of(labelling, shared, model), Deciding(labelling, shared)


def _note_memory(watcher: Watcher, peak: int, device: "torch.device") -> None:
    watcher.note(f"at most {peak / 2**20:,.0f} MiB on {device}")


def training_base(base: str, quantization: str, max_tokens: int) -> SharedBase:
    """Load a copy of a base that nobody else uses.

    Raises:
        InvalidInput: It does not read so many tokens.
    """
    shared = SharedBase.load(base, quantization=quantization, shared=False)  # type: ignore[arg-type]
    if max_tokens > shared.context_length:
        msg = (
            f"{base} reads {shared.context_length:,} tokens, rows may have {max_tokens:,}: give "
            f"--max-tokens {shared.context_length}."
        )
        raise InvalidInput(msg)
    return shared


def with_adapter(shared: SharedBase, recipe: Recipe) -> "PeftModel":
    """Put a new adapter on a base, which computes nothing at first: B is zero.

    Raises:
        InvalidInput: The recipe's targets are none of the base's layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(recipe.seed)
    named = list(recipe.targets)
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION" if shared.encodes else "CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=ALL_LINEAR if named == [ALL_LINEAR] else named,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's words with transformers
        try:
            return get_peft_model(shared.model, config)
        except ValueError as error:
            layers = sorted({name.rpartition(".")[2] for name in shared.facts.linears})
            msg = f"There are no layers {named} in {shared.facts.id}: target some of {layers}."
            raise InvalidInput(msg) from error


@contextmanager
def repeatable(device: "torch.device") -> Iterator[None]:
    """Have CUDA choose kernels that give the same bits every time, where it has such."""
    import torch

    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
