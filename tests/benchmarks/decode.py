"""Decoding at batch 1, 8 and 32: ours against HF `generate` and PEFT, in one process.

python -m tests.benchmarks.decode [--rounds 5] [--tokens 48] [--json]

A figure is generated tokens per second of the whole call, prefill INCLUDED, for every case alike:
prompts of one length, and exactly so many tokens for each. The adapters are of rank 16 on all
linears. HF and PEFT have bare bf16 copies of the base, ours the base as it is served by default.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from one4all_lc.base.loading import SharedBase
from tests.benchmarks.harness import Bar, Case, Rounds, prompts, report, rounds, throughput
from tests.benchmarks.ours import EXPERTS, Ours, mixed

BATCHES = (1, 8, 32)
WARM_UP_TOKENS = 4

BASE, PLAIN, ONE, MIXED = "HF base", "ours, no expert", "ours, one expert", "ours, mixed"
PEFT_MIXED, PEFT_ONE_BY_ONE = "PEFT adapter_names, mixed", "PEFT set_adapter, one by one"

BARS = {
    "mixed32_over_base": (32, MIXED, BASE, 0.90),
    "mixed8_over_base": (8, MIXED, BASE, 1.00),
    "mixed8_over_peft": (8, MIXED, PEFT_MIXED, 5.0),
    "mixed32_over_peft": (32, MIXED, PEFT_MIXED, 3.5),
    "single_over_base": (1, ONE, BASE, 2.0),
}
"""By key: batch, the case above, the case below, the least ratio."""

Prompts = Sequence[tuple[int, ...]]


def generate(model: PreTrainedModel | PeftModel, batch: Prompts, tokens: int, **more: object):
    """Run HF `generate` greedily; return how many tokens each row has."""
    ids = torch.tensor(batch)
    answers = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
        **more,
    )
    return [len(answer) - ids.shape[1] for answer in answers]


class Peft:
    """PEFT on a bare copy of the base, with the same experts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.model = PeftModel.from_pretrained(bare(), folders[0], adapter_name="0")
        for number, folder in enumerate(folders[1:], 1):
            self.model.load_adapter(folder, adapter_name=str(number))

    def mixed(self, batch: Prompts, tokens: int) -> list[int]:
        """All rows in one call, each with its adapter."""
        names = [str(adapter) for adapter in mixed(len(batch))]
        return generate(self.model, batch, tokens, adapter_names=names)

    def one_by_one(self, batch: Prompts, tokens: int) -> list[int]:
        """The rows of one adapter in one call, one adapter after another."""
        counts = []
        for adapter in range(min(EXPERTS, len(batch))):
            self.model.set_adapter(str(adapter))
            counts += generate(self.model, batch[adapter::EXPERTS], tokens)
        return counts


def bare() -> PreTrainedModel:
    """Return an unmodified copy of the base."""
    return SharedBase.load(quantization="none", dtype=torch.bfloat16, shared=False).model


def contestants(ours: Ours) -> dict[str, Callable[[Prompts, int], list[int]]]:
    """Return what is compared, by name: each answers a batch with so many tokens a row."""
    base, peft = bare(), Peft(ours.folders)
    return {
        BASE: partial(generate, base),
        PLAIN: lambda batch, tokens: ours.run(batch, [None] * len(batch), tokens),
        ONE: lambda batch, tokens: ours.run(batch, [0] * len(batch), tokens),
        MIXED: lambda batch, tokens: ours.run(batch, mixed(len(batch)), tokens),
        PEFT_MIXED: peft.mixed,
        PEFT_ONE_BY_ONE: peft.one_by_one,
    }


def compare(ours: Ours, tokens: int, count: int) -> Rounds:
    """Warm everything up, then run the rounds; every call has prompts of its own."""
    runs, source = contestants(ours), prompts(ours.base.tokenizer)

    def case(name: str, rows: int, tokens: int) -> float:
        batch = list(itertools.islice(source, rows))
        return throughput(lambda: runs[name](batch, tokens), tokens)

    def cases(tokens: int) -> dict[str, Case]:
        return {
            f"batch {rows}: {name}": partial(case, name, rows, tokens)
            for rows in BATCHES
            for name in runs
            if (rows, name) != (1, MIXED)  # a mixed batch of one row is one expert
        }

    rounds(cases(WARM_UP_TOKENS), 1)
    return rounds(cases(tokens), count)


def bars_of(measured: Rounds) -> dict[str, Bar]:
    """Return the bars with their figures."""
    return {
        key: Bar(measured.ratio(f"batch {rows}: {over}", f"batch {rows}: {under}"), bar)
        for key, (rows, over, under, bar) in BARS.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder))
        measured = compare(ours, arguments.tokens, arguments.rounds)
        ours.engine.close()
    report(
        measured,
        bars_of(measured),
        arguments.json,
        unit="generated tokens/s, prefill included",
        rounds=arguments.rounds,
        tokens=arguments.tokens,
        quantization=ours.base.quantization,
    )


if __name__ == "__main__":
    main()
