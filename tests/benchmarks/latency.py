"""How long somebody waits who is not alone, or not for the first time.

python -m tests.benchmarks.latency [--rounds 5] [--json]

- A newcomer's first token while 16 rows with 8 experts decode, against its first token on an idle
  engine plus two steps of those rows. Newcomers come at different moments of a step.
- Requests that alternate between two experts against requests to one: one after another, where
  switching costs most, and in one batch.
- The second turn of a chat, four fifths of whose prompt were the first turn's, against a prompt of
  the same length that nobody has asked before.
- The gaps between the tokens of a running stream while a prompt of 2,000 tokens is admitted.

Times are those that the reader of a stream sees. The adapters are of rank 16 on all linears.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from one4all_lc.engine.handle import Handle
from tests.benchmarks.harness import (
    Bar,
    Case,
    Rounds,
    prompts,
    report,
    rounds,
    throughput,
    together,
)
from tests.benchmarks.ours import EXPERTS, Ours, mixed

DECODING_ROWS = 16
NEWCOMERS, CHATS = 5, 3
"""Requests of a round whose median counts."""

STEPS = 12
"""Steps of a running batch that tell how long one takes."""

REQUESTS, TOKENS = 8, 32
"""Of every run that compares alternating experts with one."""

FIRST_TURN, SECOND_TURN = 480, 600
LONG_PROMPT = 2000
STALL = 2.0
"""A gap this many times the usual one is counted."""

NEVER = 1024
"""Tokens of a stream that is cancelled before it ends; so few that all fit into the cache."""

BUSY, BOUND = "newcomer, 16 rows decode", "newcomer alone + two steps"
SERIAL_MIXED, SERIAL_ONE = "tokens/s one by one, A B A B", "tokens/s one by one, A A A A"
BATCH_MIXED, BATCH_ONE = "tokens/s in a batch, A B A B", "tokens/s in a batch, A A A A"
CACHED, UNCACHED = "second turn, first one cached", "second turn, nothing cached"
LONGEST, USUAL = "stream, longest gap by a 2,000-token prompt", "stream, usual gap"

BARS = {
    "newcomer": (BUSY, BOUND, 1.5, True),
    "alternating": (SERIAL_MIXED, SERIAL_ONE, 0.97, False),
    "cached_prefix": (CACHED, UNCACHED, 0.4, True),
}
"""By key: the case above, the case below, the ratio, whether it is the most."""


class Waiting:
    """The cases.

    Args:
        ours: The engine with its experts.
    """

    def __init__(self, ours: Ours) -> None:
        self._ours = ours
        self._prompts = prompts(ours.base.tokenizer)
        self._turns = itertools.count()

    def cases(self) -> dict[str, Case]:
        """Return all cases by name."""
        newcomer = ("newcomer alone", "step of 16 rows", BOUND, BUSY)
        gaps = (USUAL, LONGEST, f"stream, gaps over {STALL:g} times the usual (number)")
        return {
            **together(newcomer, self.newcomer),
            SERIAL_ONE: partial(self.one_by_one, [0] * REQUESTS),
            SERIAL_MIXED: partial(self.one_by_one, [0, 1] * (REQUESTS // 2)),
            BATCH_ONE: partial(self.in_a_batch, [0] * REQUESTS),
            BATCH_MIXED: partial(self.in_a_batch, [0, 1] * (REQUESTS // 2)),
            UNCACHED: partial(self.second_turn, cached=False),
            CACHED: partial(self.second_turn, cached=True),
            **together(gaps, self.long_prompt),
        }

    def newcomer(self) -> tuple[float, float, float, float]:
        """Return the seconds of a lone newcomer, of a step, of the bound, and among others."""
        alone = statistics.median(self._first_token(next(self._turns)) for _ in range(NEWCOMERS))
        rows = [self._stream(adapter) for adapter in mixed(DECODING_ROWS)]
        reader = iter(rows[-1])  # whose prompt is read last
        next(reader)
        step = statistics.median(_gaps(reader, STEPS))
        waits = []
        for number in range(NEWCOMERS):
            next(reader)
            time.sleep(step * number / NEWCOMERS)
            waits.append(self._first_token(next(self._turns)))
        _cancel(rows)
        return alone, step, alone + 2 * step, statistics.median(waits)

    def one_by_one(self, adapters: list[int]) -> float:
        """Return tokens per second of requests each of which waits for the one before."""
        batch = list(itertools.islice(self._prompts, len(adapters)))

        def run() -> list[int]:
            return [
                count
                for prompt, adapter in zip(batch, adapters, strict=True)
                for count in self._ours.run([prompt], [adapter], TOKENS)
            ]

        return throughput(run, TOKENS)

    def in_a_batch(self, adapters: list[int]) -> float:
        """Return tokens per second of requests that run together."""
        batch = list(itertools.islice(self._prompts, len(adapters)))
        return throughput(lambda: self._ours.run(batch, adapters, TOKENS), TOKENS)

    def second_turn(self, *, cached: bool) -> float:
        """Return the seconds until the second turn's first token."""
        waits = []
        for _ in range(CHATS):
            conversation = self._tokens(SECOND_TURN)
            if cached:
                self._ours.run([conversation[:FIRST_TURN]], [0], 1)
            waits.append(_seconds_to_first(self._ours.submit(conversation, 0, 1)))
        return statistics.median(waits)

    def long_prompt(self) -> tuple[float, float, float]:
        """Return a stream's usual gap, its longest while others read, and how many were long."""
        stream = self._stream(0)
        reader = iter(stream)
        next(reader)
        usual = statistics.median(_gaps(reader, STEPS))
        newcomer = self._ours.submit(self._tokens(LONG_PROMPT), 1, 1)
        gaps = []
        while not newcomer.done:
            gaps += _gaps(reader, 1)
        _cancel([stream])
        return usual, max(gaps), sum(gap > STALL * usual for gap in gaps)

    def _first_token(self, number: int) -> float:
        return _seconds_to_first(self._ours.submit(next(self._prompts), number % EXPERTS, 1))

    def _stream(self, adapter: int) -> Handle:
        return self._ours.submit(next(self._prompts), adapter, NEVER)

    def _tokens(self, count: int) -> tuple[int, ...]:
        """Return a conversation of many turns that nobody has asked before."""
        return tuple(itertools.islice(itertools.chain.from_iterable(self._prompts), count))


def _seconds_to_first(handle: Handle) -> float:
    """Return how long a request that was just submitted takes to its first token."""
    begun = time.perf_counter()
    next(iter(handle))
    seconds = time.perf_counter() - begun
    handle.result()
    return seconds


def _gaps(reader: Iterator[object], count: int) -> list[float]:
    """Return the seconds between a stream's next tokens."""
    times = [time.perf_counter()]
    for _ in range(count):
        next(reader)
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def _cancel(handles: list[Handle]) -> None:
    for handle in handles:
        handle.cancel()
    for handle in handles:
        handle.result()


def bars_of(measured: Rounds) -> dict[str, Bar]:
    """Return the bars with their figures."""
    return {
        key: Bar(measured.ratio(over, under), bar, at_most)
        for key, (over, under, bar, at_most) in BARS.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder))
        cases = Waiting(ours).cases()
        rounds(cases, 1)  # warms up
        measured = rounds(cases, arguments.rounds)
        stats = ours.engine.stats()
        ours.engine.close()
    report(
        measured,
        bars_of(measured),
        arguments.json,
        unit="seconds, unless it says otherwise",
        rounds=arguments.rounds,
        quantization=ours.base.quantization,
        kernels=stats.kernels,
        alternating_in_a_batch=measured.ratio(BATCH_MIXED, BATCH_ONE),
        longest_over_usual_gap=measured.ratio(LONGEST, USUAL),
    )


if __name__ == "__main__":
    main()
