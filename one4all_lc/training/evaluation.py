"""An expert against the bare base on rows that neither has seen, on the base as it is served."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import Quantization, SharedBase
from one4all_lc.base.lora import Adapter, Mixture
from one4all_lc.base.planning import Planner
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Expert, read_expert
from one4all_lc.sampling import Sampling
from one4all_lc.training.data import Example, Row, encode

SCORED_ROWS = 200
"""Rows whose perplexity is measured, unless told otherwise."""

ANSWERED_ROWS = 100
"""Rows that are answered, which takes longer, unless told otherwise."""

Metrics = dict[str, Any]


def measure(
    folder: str | Path,
    rows: Sequence[Row],
    base: str,
    *,
    quantization: Quantization = "auto",
    scored: int = SCORED_ROWS,
    answered: int = ANSWERED_ROWS,
) -> Metrics:
    """Compare an expert with the bare base on held-out rows.

    Both get the expert's system prompt, so that the difference is the adapter's.

    Args:
        folder: The expert's folder.
        rows: The data; its `test` rows are used, or else its `dev` rows.
        base: Id of the base, loaded as it is served.
        quantization: How.
        scored: Rows for the perplexity, drawn by a fixed seed.
        answered: Of these, rows that are answered, greedily.

    Returns:
        Per metric the values of `base` and `expert`, and the number of rows.

    Raises:
        InvalidInput: No row was held out, or none fits the base's context.
        UnfitExpert: The expert must not be used with the base.
    """
    split = held_out_split(rows)
    if split is None:
        msg = "None of the rows has split 'test' or 'dev': there is nothing to measure with."
        raise InvalidInput(msg)
    shared = SharedBase.load(base, quantization=quantization)
    expert = read_expert(folder, shared.facts)
    held_out = [row for row in rows if row.split == split]
    drawn = Random(0).sample(held_out, min(scored, len(held_out)))
    wanted, examples = _that_fit(drawn, shared, expert)
    perplexity, tokens = _perplexities(shared, expert, examples)
    answers = _answers(shared, expert, examples[:answered])
    means = {
        name: _means(score, answers, wanted[:answered])
        for name, score in (("exact_match", exact_match), ("rouge_l", rouge_l()))
    }
    return {
        "split": split,
        "quantization": shared.quantization,
        "perplexity": {**perplexity, "rows": len(examples), "tokens": tokens},
        **means,
    }


def held_out_split(rows: Iterable[Row]) -> str | None:
    """Return the split to measure with: `test`, or else `dev`; None if neither has rows."""
    splits = {row.split for row in rows}
    return next((name for name in ("test", "dev") if name in splits), None)


def _that_fit(
    rows: Sequence[Row], shared: SharedBase, expert: Expert
) -> tuple[list[str], list[Example]]:
    """Return the answers and the examples of the rows that the base can read."""
    room = shared.context_length
    encoded = [
        (row.answer, encode([row], shared.tokenizer, expert.card.system_prompt, room)[0])
        for row in rows
    ]
    if not any(examples for _, examples in encoded):
        msg = f"All {len(rows)} held-out rows are longer than the {room:,} tokens of the base."
        raise InvalidInput(msg)
    return [answer for answer, got in encoded if got], [got[0] for _, got in encoded if got]


def exact_match(answer: str, wanted: str) -> float:
    """1.0 if both are the same text, white space aside."""
    return float(answer.split() == wanted.split())


def rouge_l() -> Callable[[str, str], float]:
    """Return the ROUGE-L F-measure, by Google's `rouge_score`.

    Raises:
        InvalidInput: The package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        msg = "Measuring an expert needs rouge-score: pip install 'one4all_lc[train]'."
        raise InvalidInput(msg) from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda answer, wanted: float(scorer.score(wanted, answer)["rougeL"].fmeasure)


def _means(
    score: Callable[[str, str], float], answers: Mapping[str, Sequence[str]], wanted: Sequence[str]
) -> dict[str, float]:
    means = {
        who: sum(score(answer, right) for answer, right in zip(given, wanted, strict=True))
        for who, given in answers.items()
    }
    rows = len(wanted)
    return {**{who: round(total / rows, 4) for who, total in means.items()}, "rows": rows}


def _perplexities(
    shared: SharedBase, expert: Expert, examples: Sequence[Example]
) -> tuple[dict[str, float], int]:
    """Return the perplexity of the answers' tokens for base and expert, and how many there are."""
    by_length = sorted(examples, key=len)
    tokens = sum(len(example.answer) for example in examples)
    adapters = {expert.identity: Engine.of(shared).residency.load(expert)}
    mixtures: dict[str, Mixture] = {"base": (), "expert": ((expert.identity, 1.0),)}
    losses = {who: _loss(shared, by_length, item, adapters) for who, item in mixtures.items()}
    return {who: round(math.exp(loss / tokens), 3) for who, loss in losses.items()}, tokens


def _loss(
    shared: SharedBase,
    examples: Sequence[Example],
    mixture: Mixture,
    adapters: Mapping[str, Adapter],
    batch_rows: int = 8,
) -> float:
    import torch

    from one4all_lc.training.batches import answer_loss, collate

    linears = Linears.of(shared)
    planner = Planner.of(linears)
    total = 0.0
    for start in range(0, len(examples), batch_rows):
        batch = examples[start : start + batch_rows]
        inputs = collate(batch)
        placed = {name: tensor.to(shared.device) for name, tensor in inputs.items()}
        length = placed["input_ids"].shape[1]
        plan = planner.plan([(length, mixture)] * len(batch), adapters)
        with torch.inference_mode(), linears.cell.using(plan):
            total += float(answer_loss(shared.model, placed))
    return total


def _answers(
    shared: SharedBase, expert: Expert, examples: Sequence[Example]
) -> dict[str, list[str]]:
    """Return what base and expert answer, in the order of the examples."""
    limit = expert.card.generation.get("max_tokens", Sampling().max_tokens)
    sampling = Sampling(max_tokens=limit)
    engine = Engine.of(shared)
    handles = {
        who: [engine.submit(Request(example.prompt, experts, sampling)) for example in examples]
        for who, experts in (("base", ()), ("expert", ((expert, 1.0),)))
    }
    return {
        who: [handle.result().text.strip() for handle in asked] for who, asked in handles.items()
    }
