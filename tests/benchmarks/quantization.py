"""What each quantization costs: logits, and the shipped experts' own metrics.

python -m tests.benchmarks.quantization [--data DIR] [--rows 40] [--answered 20] [--json]

- Logits of the base as the engine computes it, read as a prompt and decoded token by token, against
  float32: how far they are off, as a share. Those of NF4 also against float32 arithmetic on the
  very NF4 values, and beside them what transformers computes with bitsandbytes.
- Perplexity, exact match and ROUGE-L of every shipped expert on held-out rows, for each
  quantization, as `one4all eval` measures them. The rows are those that `adapters/prepare.py`
  writes; without `--data` this part is left out.
- `auto_cost`: the engine serves an expert's answers through kernels for decoding, which round more
  than reading does. The perplexity of answers through these, prompts read and answers decoded token
  by token, against the same answers by transformers and PEFT on the same NF4 base: by how much the
  worst expert loses. Eight rows at a time, so that the kernels for few rows are those that serve;
  answers are cut off where it takes long. What NF4 itself costs, against float32, has no bar and
  stands beside it.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import PeftModel

from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import DEFAULT_BASE, SharedBase
from one4all_lc.base.quantized import dense_weight
from one4all_lc.engine.decoding import Decoder
from one4all_lc.engine.engine import Engine
from one4all_lc.folder import Expert, read_expert
from one4all_lc.training.data import Example, Row, encode, read_rows
from one4all_lc.training.evaluation import held_out_split, measure
from tests.benchmarks.forced import (
    decoded,
    decoded_perplexity,
    read,
    read_perplexity,
    relative_error,
    stepped,
)
from tests.benchmarks.harness import Bar, Rounds, prompts, report

FORMS = ("nf4", "int8", "none")
EXPERTS = ("sql", "mobile", "medical")
ADAPTERS = Path(__file__).parents[2] / "adapters"
ROWS, COLUMNS = 4, 96
"""Of the tokens whose logits are compared."""

SAME_BASE, EXACT = "transformers and PEFT, nf4", "transformers and PEFT, fp32"

FORCED_ROWS, AT_ONCE = 32, 8
LONGEST, LONGEST_ANSWER = 384, 64
"""Tokens of a row, and of its answer, whose perplexity is decoded."""

Figures = dict[str, float]


def logit_errors() -> Figures:
    """Return how far the engine's logits are off, by quantization and phase."""
    exact = SharedBase.load(quantization="none", dtype=torch.float32, shared=False)
    tokens = _tokens(exact)
    right, errors = read(exact.model, tokens), {}
    for form in FORMS:
        for phase, logits in _engine_logits(SharedBase.load(quantization=form), tokens).items():
            errors[f"{form}, {phase}, against fp32"] = relative_error(logits, right)
    return errors | {
        f"{who}, {phase}, against fp32 on NF4's values": error
        for (who, phase), error in nf4_errors(exact).items()
    }


def nf4_errors(exact: SharedBase) -> dict[tuple[str, str], float]:
    """Return how far the NF4 base is off its own values' exact logits, here and in transformers.

    Args:
        exact: A float32 base that nobody else uses; it is given NF4's values.
    """
    tokens = _tokens(exact)
    peer = SharedBase.load(quantization="nf4", shared=False)
    _take_values(exact, peer)
    right = read(exact.model, tokens)
    ours = _engine_logits(SharedBase.load(quantization="nf4"), tokens)
    theirs = {"read": read(peer.model, tokens), "decoded": stepped(peer.model, tokens)}
    return {
        (who, phase): relative_error(logits, right)
        for who, phases in (("nf4", ours), ("transformers' nf4", theirs))
        for phase, logits in phases.items()
    }


def _tokens(base: SharedBase) -> torch.Tensor:
    stream = itertools.chain.from_iterable(prompts(base.tokenizer))
    return torch.tensor(list(itertools.islice(stream, ROWS * COLUMNS))).view(ROWS, COLUMNS)


def _engine_logits(base: SharedBase, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the logits of all tokens: read at once, and all but the first decoded."""
    decoder = Decoder(base)
    rows = [Example(tuple(row[:1]), (*row[1:], 0)) for row in tokens.tolist()]
    return {"read": read(base.model, tokens), "decoded": torch.stack(decoded(decoder, rows))}


def _take_values(exact: SharedBase, quantized: SharedBase) -> None:
    """Give a float32 model the values of NF4 weights that have not yet been used."""
    for name in exact.facts.linears:
        layer = quantized.model.get_submodule(name)
        own = layer.weight.quant_state.dtype
        layer.weight.quant_state.dtype = torch.float32  # else they would be rounded once more
        exact.model.get_submodule(name).weight.data = dense_weight(layer, torch.float32)
        layer.weight.quant_state.dtype = own


def own_metrics(data: Path, rows: int, answered: int) -> dict[str, dict[str, Any]]:
    """Return every expert's own metrics by quantization."""
    metrics: dict[str, dict[str, Any]] = {}
    for form in FORMS:
        metrics[form] = {
            name: measure(
                ADAPTERS / name,
                read_rows([data / f"{name}.jsonl"]),
                DEFAULT_BASE,
                quantization=form,
                scored=rows,
                answered=answered,
            )
            for name in EXPERTS
        }
        Engine.of(SharedBase.load(quantization=form)).close()
    return metrics


def decoded_perplexities(data: Path) -> dict[str, Figures]:
    """Return every expert's perplexity as served by default, by transformers and without NF4."""
    base = SharedBase.load()
    experts = {name: read_expert(ADAPTERS / name, base.facts) for name in EXPERTS}
    examples = {
        name: _examples(read_rows([data / f"{name}.jsonl"]), base, expert)
        for name, expert in experts.items()
    }
    served = _served(base, experts, examples)
    peers = {
        SAME_BASE: SharedBase.load(quantization="nf4", shared=False),
        EXACT: SharedBase.load(quantization="none", dtype=torch.float32, shared=False),
    }
    by_peer = {who: _by_peft(peer, examples) for who, peer in peers.items()}
    return {
        name: {"served": served[name], **{who: found[name] for who, found in by_peer.items()}}
        for name in EXPERTS
    }


def _served(
    base: SharedBase, experts: Mapping[str, Expert], examples: Mapping[str, Sequence[Example]]
) -> Figures:
    residency = Engine.of(base).residency
    decoder, found = Decoder(base), {}
    for name, expert in experts.items():
        adapters = {expert.identity: residency.load(expert)}
        mixture = ((expert.identity, 1.0),)
        found[name] = decoded_perplexity(decoder, examples[name], mixture, adapters, AT_ONCE)
    return found


def _by_peft(base: SharedBase, examples: Mapping[str, Sequence[Example]]) -> Figures:
    model = PeftModel.from_pretrained(base.model, ADAPTERS / EXPERTS[0], adapter_name=EXPERTS[0])
    for name in EXPERTS[1:]:
        model.load_adapter(ADAPTERS / name, adapter_name=name)
    found = {}
    for name in EXPERTS:
        model.set_adapter(name)
        found[name] = read_perplexity(model.eval(), examples[name], AT_ONCE)
    return found


def _examples(rows: Sequence[Row], base: SharedBase, expert: Expert) -> list[Example]:
    """Return held-out rows that are short, drawn by a fixed seed, long answers cut off."""
    held_out = [row for row in rows if row.split == held_out_split(rows)]
    drawn = Random(0).sample(held_out, len(held_out))
    examples: list[Example] = []
    for row in drawn:
        if len(examples) == FORCED_ROWS:
            break
        examples += encode([row], base.tokenizer, expert.card.system_prompt, LONGEST)[0]
    return [Example(example.prompt, example.answer[:LONGEST_ANSWER]) for example in examples]


def table(
    errors: Figures, metrics: Mapping[str, Mapping[str, Any]], decoding: Mapping[str, Figures]
) -> Rounds:
    """Put everything into one table."""
    figures = {f"logits, %: {name}": [100 * value] for name, value in errors.items()}
    for form, by_expert in metrics.items():
        for name, measured in by_expert.items():
            for metric in ("perplexity", "exact_match", "rouge_l"):
                figures[f"{name}, {form}: {metric}"] = [measured[metric]["expert"]]
    for name, found in decoding.items():
        for who, value in found.items():
            figures[f"{name}, {who}: perplexity of answers"] = [value]
    return Rounds(figures, {})


def cost(decoding: Mapping[str, Figures], against: str) -> Figures:
    """Return by how much each expert's perplexity is worse as served, as a share."""
    return {
        name: round(found["served"] / found[against] - 1, 5) for name, found in decoding.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of sql.jsonl, mobile.jsonl, …")
    parser.add_argument("--rows", type=int, default=40, help="rows for the perplexity")
    parser.add_argument("--answered", type=int, default=20, help="of these, rows to answer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    errors, data = logit_errors(), arguments.data
    decoding = decoded_perplexities(data) if data else {}
    metrics = own_metrics(data, arguments.rows, arguments.answered) if data else {}
    costs = cost(decoding, SAME_BASE)
    base = SharedBase.load()
    report(
        table(errors, metrics, decoding),
        {"auto_cost": Bar(max(costs.values(), default=None), 0.01, at_most=True)},
        arguments.json,
        unit="logits: % off; else the metric",
        auto=base.quantization,
        kernels=str(Linears.of(base).kernels),
        logits=errors,
        metrics=metrics or None,
        perplexity_of_answers=decoding or None,
        auto_cost_by_expert=costs or None,
        nf4_cost_by_expert=cost(decoding, EXACT) or None,
    )


if __name__ == "__main__":
    main()
