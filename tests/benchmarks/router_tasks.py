"""What the router benchmark asks, and how ours and semantic-router answer, on the same vectors."""

import hashlib
import io
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from one4all_lc.base.embedded import cache_folder
from one4all_lc.folder import OOS, Exemplar
from one4all_lc.routing.evaluation import Outcome, auroc, summary
from one4all_lc.routing.measuring import library_from, measure
from one4all_lc.routing.rows import Labelled, draw, held_out, read_labelled
from tests.benchmarks.router_vectors import KeptEmbeddings

SEEDS = (13, 29, 42, 71, 101)
AGGREGATIONS = ("mean", "max", "sum")
PEER_SCRIPT = Path(__file__).with_name("peer_semantic_router.py")

Figures = dict[str, float]


@dataclass(frozen=True)
class Task:
    """Exemplars of some domains, and questions to route among them.

    Attributes:
        exemplars: By label; those of `oos` are negatives.
        questions: What is asked.
        rehearsed: Labelled questions that only the peer gets, for its `fit`.
    """

    exemplars: Mapping[str, Sequence[Exemplar]]
    questions: Sequence[Labelled]
    rehearsed: Sequence[Labelled] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The domains, in the order of their exemplars."""
        return tuple(label for label in self.exemplars if label != OOS)


def clinc(data: Path, count: int, seeds: Sequence[int]) -> Iterator[Task]:
    """Yield CLINC150 by its ten domains, so many exemplars of each; `oos` only in the questions."""
    rows = read_labelled([data / "clinc150" / "intents.jsonl"], "domain")
    rehearsed = [row for row in rows if row.split == "dev"]
    for seed in seeds:
        drawn = {label: found for label, found in draw(rows, count, seed).items() if label != OOS}
        yield Task(drawn, held_out(rows), rehearsed)


def mix(data: Path, count: int, seeds: Sequence[int]) -> Iterator[Task]:
    """Yield router_mix: twelve domains in three languages, and exemplars of `oos`."""
    rows = read_labelled([data / "router_mix" / "intents.jsonl"])
    for seed in seeds:
        yield Task(draw(rows, count, seed), held_out(rows))


def languages(data: Path) -> Iterator[tuple[str, Task]]:
    """Yield massive_sample500, English exemplars: the test questions in English and in Persian."""
    english, persian = (
        read_labelled([data / "massive_sample500" / f"intents.{name}.jsonl"], "domain")
        for name in ("en", "fa")
    )
    exemplars = draw(english, len(english), 0)
    for name, rows in (("en", english), ("fa", persian)):
        yield name, Task(exemplars, [row for row in held_out(rows) if row.label in exemplars])


def ours(task: Task, embeddings: KeptEmbeddings, **settings: Any) -> Outcome:
    """Route a task's questions with the router as users have it."""
    library, labels = library_from(task.exemplars)
    return measure(library, labels, task.questions, embeddings=embeddings, **settings).outcome


def figures_of(outcome: Outcome) -> Figures:
    """Return the figures of an outcome that are told."""
    return {name: value for name, value in summary(outcome).items() if value is not None}


def theirs(task: Task, embeddings: KeptEmbeddings, python: Path) -> dict[str, Figures]:
    """Return semantic-router's figures by aggregation; they are kept for the same vectors."""
    owners = {label: index for index, label in enumerate(task.labels)}
    texts = [
        (item.text, index) for label, index in owners.items() for item in task.exemplars[label]
    ]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        exemplars=embeddings.vectors([text for text, _ in texts]),
        owners=np.array([owner for _, owner in texts]),
        questions=embeddings.vectors([row.text for row in task.questions]),
        held_out=embeddings.vectors([row.text for row in task.rehearsed]),
        held_out_owners=_wanted(task.rehearsed, owners),
    )
    found = _scores(buffer.getvalue(), python)
    wanted, rehearsed = _wanted(task.questions, owners), _wanted(task.rehearsed, owners)
    return {name: _peer_figures(name, found, wanted, rehearsed) for name in AGGREGATIONS}


def _wanted(rows: Sequence[Labelled], owners: Mapping[str, int]) -> NDArray[np.intp]:
    return np.array([owners.get(row.label, -1) for row in rows], np.intp)


def _scores(task: bytes, python: Path) -> dict[str, NDArray[Any]]:
    script = PEER_SCRIPT.read_bytes()
    folder = cache_folder() / "benchmarks" / "semantic-router-scores"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(task + script).hexdigest()[:32]}.npz"
    if not file.is_file():
        given, made = file.with_suffix(".task"), file.with_suffix(".part.npz")
        given.write_bytes(task)
        subprocess.run([str(python), str(PEER_SCRIPT), str(given), str(made)], check=True)
        given.unlink()
        made.replace(file)
    with np.load(file) as found:
        return dict(found)


def _peer_figures(
    name: str,
    found: Mapping[str, NDArray[Any]],
    wanted: NDArray[np.intp],
    rehearsed: NDArray[np.intp],
) -> Figures:
    scores, known = found[name], wanted >= 0
    figures = {
        "accuracy_in_scope": float((scores.argmax(1) == wanted)[known].mean()),
        "auroc": auroc(scores.max(1).astype(float), known) or 0.0,
        "seconds_a_question": float(found[f"{name}_seconds"]),
    }
    confidence = found[f"{name}_confidence"]
    least = np.quantile(found[f"{name}_bar"][rehearsed >= 0], 0.05)
    figures["retention"] = float((confidence >= least)[known].mean())
    figures["oos_recall"] = float((confidence < least)[~known].mean())
    return figures
