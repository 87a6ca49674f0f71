"""Many more experts than memory holds, and what those in memory take.

python -m tests.benchmarks.residency [--rounds 3] [--requests 96] [--tokens 32] [--json]

`zipf1000`: 1,000 experts are registered, adapters may take 64 MB, and requests that are all there
at once ask for expert k with a probability in proportion to 1/k. Against it the same prompts and
draws, expert numbers modulo 8, with those 8 in memory and the default budget. Before either, an
engine serves as many requests of another draw: what is measured is traffic that goes on. Every
expert has rank 8 on all linears and a scale of its own, so that it is loaded and kept by itself;
the weights on disk are one file under many names.

The bar of `zipf1000`, .7, held while products were slow. With AMX it does not: a step costs more
for what is read (weights, the output layer, each adapter once) and less for its rows. 64 MB hold 13
adapters, and 96 requests ask for some 65 experts in five groups of 13, each for as many steps as an
answer has tokens; 8 experts fill 32 rows and need three. What is printed of both sides, steps and
seconds of each kind, says where it goes. Tried, without gain: to hold newcomers back until several
can be read together, and recordings of fewer sizes. What helped both sides alike left the ratio as
it is: no copy of an adapter's B, adapters of prompts in tiles.

`memory100`: one base and 100 experts in memory, each of which has just answered, against 100 bare
models in bfloat16. What a batch packs is counted, keys and values are not, on either side.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import operator
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from one4all_lc.base.linears import Linears
from one4all_lc.base.loading import SharedBase
from one4all_lc.base.lora import AdaptersById
from one4all_lc.card import ExpertCard
from one4all_lc.engine.decoding import Decoder, RowInput
from one4all_lc.engine.engine import Engine
from one4all_lc.engine.request import Request
from one4all_lc.folder import CONFIG_FILE, WEIGHTS_FILE, Expert, read_expert
from tests.benchmarks.harness import Bar, Rounds, prompts, rate, report, rounds, together
from tests.benchmarks.ours import exactly

SHIPPED = Path(__file__).parents[2] / "adapters" / "mobile"
REGISTERED, RESIDENT = 1000, 8
BUDGET = 64_000_000
IN_MEMORY = (1, 10, 100)
WARM_UP_TOKENS = 4
SAMPLE_SECONDS = 0.05
"""Counting bytes holds up the engine: a sample takes milliseconds."""

MEGA = 1e6

FEW, MANY = f"{RESIDENT} experts", f"{REGISTERED} experts, 64 MB"
PEAK = "{case}: most bytes of adapters (MB)"


def write_experts(folder: Path, base: SharedBase) -> list[Expert]:
    """Write expert folders that differ in scale alone, and read them."""
    card = ExpertCard.read(SHIPPED)
    config = json.loads((SHIPPED / CONFIG_FILE).read_text(encoding="utf-8"))
    weights = folder / WEIGHTS_FILE
    shutil.copyfile(SHIPPED / WEIGHTS_FILE, weights)  # links do not cross file systems
    experts = []
    for number in range(REGISTERED):
        own = folder / f"expert{number}"
        own.mkdir()
        try:
            (own / WEIGHTS_FILE).hardlink_to(weights)
        except OSError:  # so many names of one file are more than some file systems have
            shutil.copyfile(weights, own / WEIGHTS_FILE)
        scaled = config | {"lora_alpha": config["lora_alpha"] + number / REGISTERED}
        (own / CONFIG_FILE).write_text(json.dumps(scaled), encoding="utf-8")
        dataclasses.replace(card, name=own.name).write(own)
        experts.append(read_expert(own, base.facts))
    assert len({expert.identity for expert in experts}) == REGISTERED
    return experts


class Profile:
    """Where an engine's time goes.

    Attributes:
        seconds: Of all forwards of one kind: in which everybody decodes, some prompts are read,
            or a step is recorded.
        steps: How many forwards of one kind there were.
    """

    KINDS = ("decode", "read prompts", "record")

    def __init__(self, decoder: Decoder) -> None:
        self.seconds, self.steps = dict.fromkeys(self.KINDS, 0.0), dict.fromkeys(self.KINDS, 0)
        self._decoder, self._forward = decoder, decoder.forward
        decoder.forward = self._timed  # type: ignore[method-assign]

    def figures(self) -> Iterator[float]:
        """Yield seconds and number of forwards of every kind."""
        for kind in self.KINDS:
            yield from (self.seconds[kind], self.steps[kind])

    @classmethod
    def names(cls, case: str) -> Iterator[str]:
        """Yield what those figures are called."""
        for kind in cls.KINDS:
            yield from (f"{case}: seconds of steps that {kind}", f"{case}: steps that {kind}")

    def _timed(self, rows: Sequence[RowInput], adapters: AdaptersById) -> Tensor:
        recorded, begun = self._decoder.recorded_bytes, time.perf_counter()
        logits = self._forward(rows, adapters)
        kind = "decode" if all(row.decodes for row in rows) else "read prompts"
        kind = kind if self._decoder.recorded_bytes == recorded else "record"
        self.seconds[kind] += time.perf_counter() - begun
        self.steps[kind] += 1
        return logits


class Watched:
    """An engine for one run, where its time goes, and the most that its adapters have taken.

    A base has one engine at a time, so every run makes its own.

    Attributes:
        profile: Of its forwards.
        peak: The most bytes.
    """

    def __init__(self, base: SharedBase, **settings: int) -> None:
        self.engine = Engine(base, **settings)
        self.profile = Profile(self.engine._decoder)
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def ask(self, requests: Sequence[Request]) -> list[int]:
        """Submit all at once; return how many tokens each answer has."""
        handles = [self.engine.submit(request) for request in requests]
        return [len(handle.result().tokens) for handle in handles]

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            stats = self.engine.stats()
            self.peak = max(self.peak, stats.adapter_bytes + stats.packed_bytes)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.engine.close()


class Traffic:
    """The cases.

    Args:
        base: The base.
        experts: All that are registered, the busiest first.
        requests: How many are there at once.
        tokens: Of each answer.
    """

    def __init__(
        self, base: SharedBase, experts: Sequence[Expert], requests: int, tokens: int
    ) -> None:
        self._base, self._experts, self._tokens = base, experts, tokens
        self._prompts = prompts(base.tokenizer)
        self._requests = requests
        self._rounds = {name: itertools.count() for name in (FEW, MANY)}

    def few(self) -> tuple[float, ...]:
        """Return the figures with 8 experts in memory, as `names` has them."""
        return self._serve(*([number % RESIDENT for number in draw] for draw in self._draw(FEW)))

    def many(self) -> tuple[float, ...]:
        """Return the same with the small budget."""
        return self._serve(*self._draw(MANY), adapter_bytes=BUDGET)

    @staticmethod
    def names(case: str) -> tuple[str, ...]:
        """Return what the figures of a case are called, tokens per second under its own name."""
        peak, rows, loads = PEAK.format(case=case), f"{case}: tokens a step", f"{case}: loads"
        return (case, rows, peak, loads, *Profile.names(case))

    def _draw(self, case: str) -> tuple[list[int], list[int]]:
        """Draw expert numbers, to warm up and to measure: in one round the same for both cases."""
        chances = [1 / number for number in range(1, len(self._experts) + 1)]
        draw = random.Random(next(self._rounds[case]))
        earlier, numbers = (
            draw.choices(range(len(self._experts)), chances, k=self._requests) for _ in range(2)
        )
        return earlier, numbers

    def _serve(
        self, earlier: Sequence[int], numbers: Sequence[int], **settings: int
    ) -> tuple[float, ...]:
        with Watched(self._base, **settings) as watched:
            watched.ask([self._request(number, self._tokens) for number in earlier])
            requests = [self._request(number, self._tokens) for number in numbers]
            before = watched.engine.stats()
            earlier = tuple(watched.profile.figures())
            begun = time.perf_counter()
            counts = watched.ask(requests)
            speed = rate(counts, self._tokens, time.perf_counter() - begun)
            after = watched.engine.stats()
        rows = (after.tokens - before.tokens) / (after.steps - before.steps)
        loads = after.adapter_loads - before.adapter_loads
        forwards = map(operator.sub, watched.profile.figures(), earlier)
        return speed, rows, watched.peak / MEGA, loads, *forwards

    def _request(self, number: int, tokens: int) -> Request:
        return Request(next(self._prompts), ((self._experts[number], 1.0),), exactly(tokens))


def serve(traffic: Traffic, count: int) -> Rounds:
    """Run the rounds; every run warms up by itself."""
    few, many = traffic.names(FEW), traffic.names(MANY)
    return rounds({**together(few, traffic.few), **together(many, traffic.many)}, count)


def memory(base: SharedBase, experts: Sequence[Expert]) -> dict[str, dict[str, float | None]]:
    """Return by number of experts what they and the base take, and as many bare models."""
    source, taken = prompts(base.tokenizer), {}
    for count in IN_MEMORY:
        with Watched(base, adapter_bytes=900 << 20) as watched:
            watched.ask(
                [
                    Request(prompt, ((expert, 1.0),), exactly(WARM_UP_TOKENS))
                    for expert, prompt in zip(experts[:count], source, strict=False)
                ]
            )
            stats = watched.engine.stats()
            assert stats.adapters == count
            own = stats.adapter_bytes + stats.packed_bytes + stats.recorded_bytes
            taken[count] = (base_bytes(base) + max(own, watched.peak), resident_bytes())
    # Last of all: it would be in the process's memory.
    full = SharedBase.load(quantization="none", dtype=torch.bfloat16, shared=False).memory_bytes
    return {
        str(count): {
            "one_base_bytes": ours,
            "full_models_bytes": count * full,
            "share": round(ours / (count * full), 4),
            "process_bytes": process,
        }
        for count, (ours, process) in taken.items()
    }


def base_bytes(base: SharedBase) -> int:
    """Return what the base takes: weights in every layout, and what else the model holds."""
    rest = {tensor.data_ptr(): tensor.nbytes for tensor in base.model.state_dict().values()}
    return Linears.of(base).memory_bytes + sum(rest.values())


def resident_bytes() -> int | None:
    """Return what the whole process has in memory; None where the kernel does not tell."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def bars_of(measured: Rounds, taken: dict[str, dict[str, float | None]]) -> dict[str, Bar]:
    """Return the bars with their figures."""
    peak = round(max(measured.figures[PEAK.format(case=MANY)]) * MEGA / BUDGET, 3)
    return {
        "zipf1000": Bar(measured.ratio(MANY, FEW), 0.7),
        "zipf1000_memory": Bar(peak, 1.1, at_most=True),
        "memory100": Bar(taken["100"]["share"], 0.06, at_most=True),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base = SharedBase.load()
    with tempfile.TemporaryDirectory() as folder:
        experts = write_experts(Path(folder), base)
        traffic = Traffic(base, experts, arguments.requests, arguments.tokens)
        measured = serve(traffic, arguments.rounds)
        taken = memory(base, experts)
    report(
        measured,
        bars_of(measured, taken),
        arguments.json,
        unit="tokens/s, or as it says",
        rounds=arguments.rounds,
        requests=arguments.requests,
        tokens=arguments.tokens,
        quantization=base.quantization,
        kernels=str(Linears.of(base).kernels),
        memory=taken,
    )


if __name__ == "__main__":
    main()
