"""What a matrix says: as JSON with its bars, as a page with heat maps."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from one4all_lc.card import BASE, PERPLEXITY
from one4all_lc.reports.bar import Bar
from one4all_lc.reports.figures import heat_map
from one4all_lc.reports.page import Fact, Page, Picture, Table
from one4all_lc.training import intervals
from one4all_lc.training.intervals import CONFIDENCE, RESAMPLES, Array
from one4all_lc.training.matrix import Domain, Matrix

NEAREST = "nearest"
METHOD = (
    f"{CONFIDENCE:.0%} intervals: Wilson's for shares of rows; for all other figures and for "
    f"differences the paired bootstrap over rows, {RESAMPLES} resamples, seed 0"
)
_TITLES = {BASE: "base, no expert", NEAREST: "nearest training answer"}


def bars_of(matrix: Matrix) -> dict[str, Bar]:
    """Return the bars of the shipped experts; what did not run has no value."""
    ways = matrix.ways()
    oracle, routed = ways["oracle"]["score"], ways["routed"]["score"]
    ratios = [matrix.ratio(domain.name, domain) for domain in matrix.domains]
    return {
        "sql_exact_match": Bar(_own(matrix, "sql", "exact_match"), 0.40),
        "shell_first_word": Bar(_own(matrix, "shell", "first_word"), 0.55),
        "medical_rouge_l": Bar(_own(matrix, "medical", "rouge_l"), 0.25),
        "worst_perplexity_ratio": Bar(round(max(ratios), 4), 0.6, at_most=True),
        "routed_over_oracle": Bar(round(routed / oracle, 4) if oracle else None, 0.97),
    }


def as_dict(matrix: Matrix) -> dict[str, Any]:
    """Return everything, JSON-ready, the bars last."""
    return {
        "base": matrix.shared.facts.id,
        "quantization": matrix.shared.quantization,
        "intervals": METHOD,
        "metrics": {d.name: matrix.examination(d).metrics() for d in matrix.domains},
        "matrix": {domain.name: _column(matrix, domain) for domain in matrix.domains},
        "answered_by": matrix.ways(),
        "bars": {name: bar.as_dict() for name, bar in bars_of(matrix).items()},
    }


def page_of(matrix: Matrix) -> Page:
    """Return the page: bars, heat maps, tables.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    rows = ", ".join(f"{d.name} {len(d.held_out.to_answer)}" for d in matrix.domains)
    summary = (
        f"{len(matrix.names) - 1} experts of {matrix.shared.facts.id} "
        f"({matrix.shared.quantization}, as served), each asked the held-out rows of every domain "
        f"(answered: {rows})."
    )
    facts = [_fact(name, bar) for name, bar in bars_of(matrix).items() if bar.value is not None]
    parts: list[Picture | Table] = [_scores(matrix), _perplexities(matrix), *_tables(matrix)]
    return Page("Experts and domains", summary, facts, parts)


def _own(matrix: Matrix, name: str, metric: str) -> float | None:
    scores = matrix.scores[metric].get((name, name))
    return None if scores is None else round(float(scores.mean()), 4)


def _column(matrix: Matrix, domain: Domain) -> dict[str, Any]:
    answered = _answerers(matrix, domain)
    return {
        "metric": domain.decides,
        "rows": {"read": len(domain.held_out.rows), "answered": len(domain.held_out.to_answer)},
        "scores": {who: _sure(matrix.deciding(who, domain)) for who in answered},
        "perplexity_over_base": {
            who: round(matrix.ratio(who, domain), 4) for who in matrix.names if who != BASE
        },
        "own_is_best_within_interval": matrix.own_is_best(domain),
        "routed_to": _counts(matrix, domain),
    }


def _answerers(matrix: Matrix, domain: Domain) -> list[str]:
    return [*matrix.names, *([NEAREST] if domain.looked_up is not None else [])]


def _sure(values: Array) -> dict[str, Any]:
    low, high = intervals.of_mean(values)
    return {"score": round(float(values.mean()), 4), "interval": [round(low, 4), round(high, 4)]}


def _counts(matrix: Matrix, domain: Domain) -> dict[str, int]:
    names = [who or BASE for who in matrix.chosen[domain.name]]
    return {name: names.count(name) for name in sorted(set(names), key=names.count, reverse=True)}


def _fact(name: str, bar: Bar) -> Fact:
    words = f"{'at most' if bar.at_most else 'at least'} {bar.bar}"
    met = "met" if bar.holds else "not met"
    return Fact(f"{bar.value:.3f}", name.replace("_", " "), f"{words}: {met}")


def _order(matrix: Matrix) -> list[str]:
    """Return who is asked: the domains' experts on the diagonal, then the others, the base last."""
    own = [domain.name for domain in matrix.domains]
    return [*own, *(name for name in matrix.names if name not in own)]


def _scores(matrix: Matrix) -> Picture:
    who = _order(matrix)
    if any(domain.looked_up is not None for domain in matrix.domains):
        who.append(NEAREST)
    values = np.array([[_mean(matrix, name, d) for d in matrix.domains] for name in who])
    best = np.nanmax(values, axis=0, initial=0.0, keepdims=True)
    shares = np.divide(values, best, out=np.zeros_like(values), where=best > 0)
    shares[np.isnan(values)] = np.nan
    columns = [f"{d.name} ({_words(d.decides)})" for d in matrix.domains]
    png = heat_map(
        shares,
        [_TITLES.get(name, name) for name in who],
        columns,
        "Answers: who does what",
        x="questions of",
        y="answered by",
        written=[[f"{value:.2f}" for value in row] for row in values],
        limits=(0.0, 1.0),
    )
    words = (
        "The mean score of the answers by each domain's own metric. Colours compare within a "
        "column: the darkest is its best."
    )
    return Picture("scores", "Each expert on every domain", png, words)


def _mean(matrix: Matrix, who: str, domain: Domain) -> float:
    found = matrix.scores[domain.decides].get((who, domain.name))
    return float("nan") if found is None else float(found.mean())


def _perplexities(matrix: Matrix) -> Picture:
    who = [name for name in _order(matrix) if name != BASE]
    ratios = np.array([[matrix.ratio(name, d) for d in matrix.domains] for name in who])
    png = heat_map(
        -np.log2(ratios),
        who,
        [domain.name for domain in matrix.domains],
        "Perplexity over the base's",
        x="answers of",
        y="read by",
        written=[[f"{ratio:.2f}" for ratio in row] for row in ratios],
        limits=(-2.0, 2.0),
        colors="RdBu",
    )
    words = (
        "The perplexity of the wanted answers divided by the base's on the same rows with the "
        "domain's prompt: blue below 1 is better than no expert, red above 1 is worse."
    )
    return Picture("perplexity", "How surprised each expert is", png, words)


def _tables(matrix: Matrix) -> tuple[Table, ...]:
    ways = matrix.ways()
    domains = [domain.name for domain in matrix.domains]
    answered_by = Table(
        "Who answers",
        ["answered by", "mean of domains", *domains],
        [
            [way, found["score"], *[float(found["domains"][name]) for name in domains]]
            for way, found in ways.items()
        ],
        "The router's choice against the domain's own expert (oracle), an expert drawn blindly "
        "(random), and the base. Where the router abstains the bare base answers.",
    )
    own = [_own_rows(matrix.examination(d).metrics(), d.name) for d in matrix.domains]
    gains = Table(
        "Each expert in its own domain",
        ["expert", "metric", "base", "expert", "nearest", "better by", "rows"],
        [row for rows in own for row in rows],
        f"{METHOD}. For perplexities the last figure is the expert's over the base's.",
    )
    routed: list[list[str | float | int | None]] = [
        [domain.name, who, count]
        for domain in matrix.domains
        for who, count in _counts(matrix, domain).items()
    ]
    where = Table("Where the router sent them", ["domain", "to", "rows"], routed, folded=True)
    return answered_by, gains, where


def _words(metric: str) -> str:
    return "ROUGE-L" if metric == "rouge_l" else metric.replace("_", " ")


def _own_rows(metrics: Mapping[str, Any], name: str) -> list[list[str | float | int | None]]:
    rows: list[list[str | float | int | None]] = []
    for metric, found in metrics.items():
        if not isinstance(found, Mapping):
            continue
        gain = "ratio" if metric == PERPLEXITY else "gain"
        low, high = found["intervals"][gain]
        better = f"{found[gain]:.3f} [{low:.3f}, {high:.3f}]"
        figures = found["base"], found["expert"], found.get("nearest")
        rows.append([name, _words(metric), *figures, better, found["rows"]])
    return rows
