"""The router held to its bars: beside semantic-router 1.1 on the same vectors, and alone.

    python -m tests.benchmarks.router [--data DIR] [--parts clinc mix languages speed finetune]
                                      [--seeds N ...] [--cache DIR] [--json]

DIR, or $ONE4ALL_DATA, holds `clinc150`, `router_mix` and `massive_sample500`. Exemplars are drawn
from the training rows by each seed, and all test rows are asked. Nothing is chosen, fitted or
calibrated on test rows; semantic-router's `fit` is given all development rows, `oos` among them,
which ours never sees. Its environment is built in the cache folder; vectors and its scores are kept
there, so that a second run is quick.
"""

import argparse
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir
from rich.console import Console

from tests.benchmarks.harness import Bar, Rounds, report
from tests.benchmarks.peer_environments import SEMANTIC_ROUTER, PeerMissing, python_of
from tests.benchmarks.router_speed import measured_speed
from tests.benchmarks.router_tasks import (
    AGGREGATIONS,
    SEEDS,
    Figures,
    clinc,
    figures_of,
    languages,
    mix,
    ours,
    theirs,
)
from tests.benchmarks.router_tuning import measured_tuning
from tests.benchmarks.router_vectors import MODELS, KeptEmbeddings

COUNTS = (10, 20, 50)
PARTS = ("clinc", "mix", "languages", "speed", "finetune")
NOTHING = Rounds({}, {})
Bars = dict[str, Bar]
console = Console(stderr=True)


def mean_of(runs: Iterable[Figures]) -> Figures:
    """Return the mean of each figure over runs."""
    runs = list(runs)
    return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}


def against_peer(
    data: Path, seeds: list[int], python: Path | None
) -> dict[str, dict[str, list[Figures]]]:
    """Return figures by setting, arm and seed on CLINC150's ten domains."""
    found: dict[str, dict[str, list[Figures]]] = {}
    for model in MODELS:
        embeddings = KeptEmbeddings(model)
        for count in COUNTS:
            arms: dict[str, list[Figures]] = {}
            for task in clinc(data, count, seeds):
                arms.setdefault("ours", []).append(figures_of(ours(task, embeddings)))
                peers = theirs(task, embeddings, python) if python else {}
                for name, figures in peers.items():
                    arms.setdefault(name, []).append(figures)
            found[f"clinc_{model}_k{count}"] = arms
            words = ", ".join(f"{k} {v:.3f}" for k, v in mean_of(arms["ours"]).items())
            console.print(f"clinc_{model}_k{count}: {words}", markup=False)
    return found


def gain(arms: Mapping[str, list[Figures]], figure: str) -> float | None:
    """Return by how much ours is over the best aggregation, which may be another for each seed."""
    peers = [arms[name] for name in AGGREGATIONS if name in arms]
    if not peers:
        return None
    best = [max(run[figure] for run in runs) for runs in zip(*peers, strict=True)]
    own = [run[figure] for run in arms["ours"]]
    return statistics.fmean(mine - other for mine, other in zip(own, best, strict=True))


def clinc_bars(found: Mapping[str, dict[str, list[Figures]]]) -> Bars:
    """Hold the figures of CLINC150 to their bars."""
    bars: Bars = {}
    gains = {key: gain(arms, "accuracy_in_scope") for key, arms in found.items()}
    for key, arms in found.items():
        bars[f"{key}_accuracy_gain"] = Bar(gains[key], 0.02)
        bars[f"{key}_auroc_gain"] = Bar(gain(arms, "auroc"), 0.01)
    known = [value for value in gains.values() if value is not None]
    bars["clinc_accuracy_gain_mean"] = Bar(statistics.fmean(known) if known else None, 0.04)
    means = {key: mean_of(arms["ours"]) for key, arms in found.items()}
    many = [value for key, value in means.items() if key.endswith("k50")]
    bars["oos_recall_k50"] = Bar(min(value["oos_recall"] for value in many), 0.60)
    off = max(abs(value["retention"] - 0.95) for value in many)
    bars["oos_recall_k50_retention_off"] = Bar(off, 0.02, at_most=True)
    errors = [value["ece"] for value in means.values()]
    bars["ece"] = Bar(statistics.fmean(errors), 0.05, at_most=True)
    bars["ece_of_the_worst_setting"] = Bar(max(errors), 0.05, at_most=True)
    return bars


def mix_bars(data: Path, seeds: list[int]) -> tuple[Bars, Figures]:
    """Measure router_mix with multilingual-e5."""
    embeddings = KeptEmbeddings("e5")
    found = mean_of(figures_of(ours(task, embeddings)) for task in mix(data, 50, seeds))
    bars = {
        "mix_accuracy": Bar(found["accuracy_in_scope"], 0.93),
        "mix_auroc": Bar(found["auroc"], 0.93),
    }
    return bars, found


def language_bars(data: Path) -> tuple[Bars, dict[str, float]]:
    """Measure Persian questions against English ones, by English exemplars."""
    embeddings = KeptEmbeddings("e5")
    found = {
        name: figures_of(ours(task, embeddings))["accuracy_in_scope"]
        for name, task in languages(data)
    }
    return {"cross_language": Bar(found["fa"] / found["en"], 0.85)}, found


def measured(arguments: argparse.Namespace) -> tuple[Rounds, Bars, dict[str, Any]]:
    """Measure the parts that were asked for."""
    data, seeds, parts = arguments.data, arguments.seeds, arguments.parts
    timed, bars, facts = NOTHING, {}, {"seeds": seeds}
    if "clinc" in parts:
        found = against_peer(data, seeds, peer_of(arguments.cache))
        bars |= clinc_bars(found)
        facts["clinc"] = {
            key: {arm: mean_of(runs) for arm, runs in arms.items()} for key, arms in found.items()
        }
    if "mix" in parts:
        more, facts["mix"] = mix_bars(data, seeds)
        bars |= more
    if "languages" in parts:
        more, facts["languages"] = language_bars(data)
        bars |= more
    if "finetune" in parts:
        more, facts["finetune"] = measured_tuning(data, seeds)
        bars |= more
    if "speed" in parts:
        timed, more, facts["speed"] = measured_speed(data)
        bars |= more
    return timed, bars, facts


def peer_of(cache: Path) -> Path | None:
    """Return the interpreter that has semantic-router; None leaves its bars null."""
    try:
        return python_of(SEMANTIC_ROUTER, cache)
    except PeerMissing as reason:
        console.print(f"semantic-router is left out: {reason}", markup=False)
        return None


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ONE4ALL_DATA", "../shared/data")
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--cache", type=Path, default=Path(user_cache_dir("one4all_lc"), "peers"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    timed, bars, facts = measured(arguments)
    report(timed, bars, arguments.json, unit="seconds", **facts)


if __name__ == "__main__":
    main()
