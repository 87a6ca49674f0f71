"""Ours against vLLM and llama.cpp on the same machine, in turn.

python -m tests.benchmarks.peers [--rounds 5] [--tokens 48] [--cache DIR] [--json]

A figure is generated tokens per second of the whole call, prefill INCLUDED, for everybody alike:
prompts of one length, exactly so many tokens for each, greedy, two threads. vLLM has the base in
bfloat16, llama.cpp its Q4_1 file, ours the base as it is served by default; the adapters are of
rank 16 on all linears. The peers' environments are built in the cache folder first, which takes
some twenty minutes once; a peer that cannot be had leaves its bars null.
"""

import argparse
import contextlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir
from rich.console import Console

from one4all_lc.base.embedded import resolve
from tests.benchmarks.harness import Bar, Case, Rounds, prompts, rate, report, rounds, throughput
from tests.benchmarks.peer_environments import (
    CHAT_BASE,
    LLAMACPP,
    VLLM,
    PeerMissing,
    gguf_of,
    python_of,
)
from tests.benchmarks.peer_process import PeerProcess

THREADS = 2
WARM_UP_TOKENS = 4

BARS = {
    "mixed8_over_vllm": ("batch 8: ours, mixed", "batch 8: vLLM, mixed", 3.0),
    "mixed32_over_vllm": ("batch 32: ours, mixed", "batch 32: vLLM, mixed", 5.0),
    "single_over_llamacpp": ("batch 1: ours, one expert", "batch 1: llama.cpp, base", 0.5),
}
"""By key: the case above, the case below, the least ratio."""


def start_vllm(cache: Path, folders: Sequence[Path]) -> PeerProcess:
    """Start vLLM with the experts of these folders."""
    settings = {"base": resolve(CHAT_BASE), "adapters": [str(folder) for folder in folders]}
    python = python_of(VLLM, cache)
    # It would keep one core of two for its scheduler.
    environment = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}"}
    module, log = "tests.benchmarks.peer_vllm", cache / "vllm.log"
    return PeerProcess(python, module, settings, environment, log)


def start_llamacpp(cache: Path) -> PeerProcess:
    """Start llama.cpp with the base."""
    settings = {"model": str(gguf_of(cache)), "threads": THREADS}
    python = python_of(LLAMACPP, cache)
    module, log = "tests.benchmarks.peer_llamacpp", cache / "llamacpp.log"
    return PeerProcess(python, module, settings, {}, log)


def started(stack: contextlib.ExitStack, cache: Path, folders: Sequence[Path]):
    """Start the peers that can be had; return them by name, and of the others why not."""
    starts = {
        "vLLM": partial(start_vllm, cache, folders),
        "llama.cpp": partial(start_llamacpp, cache),
    }
    peers, missing = {}, {}
    for name, start in starts.items():
        try:
            peers[name] = stack.enter_context(start())
        except (PeerMissing, OSError) as reason:
            missing[name] = str(reason)
            Console(stderr=True).print(f"{name} is not here: {reason}", markup=False)
    return peers, missing


def compare(ours, peers: dict[str, PeerProcess], tokens: int, count: int) -> Rounds:
    """Warm everything up, then run the rounds; every call has prompts of its own."""
    from tests.benchmarks.ours import mixed

    source = prompts(ours.base.tokenizer)

    def own(adapters: list[int | None], tokens: int) -> float:
        batch = list(itertools.islice(source, len(adapters)))
        return throughput(lambda: ours.run(batch, adapters, tokens), tokens)

    def peer(name: str, adapters: list[int | None], tokens: int) -> float:
        batch = list(itertools.islice(source, len(adapters)))
        seconds, counts = peers[name].run(batch, adapters, tokens)
        return rate(counts, tokens, seconds)

    def cases(tokens: int) -> dict[str, Case]:
        everything = {
            "batch 1: ours, one expert": partial(own, [0], tokens),
            "batch 1: llama.cpp, base": partial(peer, "llama.cpp", [None], tokens),
            "batch 8: ours, mixed": partial(own, mixed(8), tokens),
            "batch 8: vLLM, mixed": partial(peer, "vLLM", mixed(8), tokens),
            "batch 32: ours, mixed": partial(own, mixed(32), tokens),
            "batch 32: vLLM, mixed": partial(peer, "vLLM", mixed(32), tokens),
        }
        here = ("ours", *peers)
        return {name: run for name, run in everything.items() if any(who in name for who in here)}

    rounds(cases(WARM_UP_TOKENS), 1)
    return rounds(cases(tokens), count)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--cache", type=Path, default=Path(user_cache_dir("one4all_lc"), "peers"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # read when torch is imported, which is below
    from tests.benchmarks.ours import Ours

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ours = Ours(Path(folder))
        stack.callback(ours.engine.close)
        peers, missing = started(stack, arguments.cache.absolute(), ours.folders)
        measured = compare(ours, peers, arguments.tokens, arguments.rounds)
    report(
        measured,
        {key: Bar(measured.ratio(over, under), bar) for key, (over, under, bar) in BARS.items()},
        arguments.json,
        unit="generated tokens/s, prefill included",
        rounds=arguments.rounds,
        tokens=arguments.tokens,
        quantization=ours.base.quantization,
        peers={"vLLM": VLLM.requirements, "llama.cpp": LLAMACPP.requirements},
        missing=missing,
    )


if __name__ == "__main__":
    main()
