"""What an engine does at the moment and has done so far, as numbers and as Prometheus text."""

import statistics
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from one4all_lc.errors import InvalidInput

WINDOW = 10.0
"""Seconds over which the rate of tokens is counted."""


@dataclass(frozen=True)
class EngineStats:
    """One moment of an engine.

    Attributes:
        running: Requests that hold a row.
        waiting: Requests that wait for one.
        tokens_per_second: Tokens chosen in the last ten seconds, all rows together.
        first_token_seconds: Median from submission to first token of the last 256 requests.
        tokens: Tokens chosen so far.
        steps: Forwards so far.
        ended: How many requests ended how: `stop`, `length`, `cancelled`, `deadline`, `error`.
        adapters: Adapters in memory.
        adapter_bytes: Bytes that they take, without packed ones.
        packed_bytes: Bytes of adapters packed for batches.
        adapter_budget: Bytes that adapters may take.
        adapter_loads: How often an adapter was read from disk.
        recorded_bytes: Bytes of recorded steps' memory.
        prefix_bytes: Bytes of kept beginnings of prompts.
        prefix_budget: Bytes that those may take.
        prompt_tokens: Tokens of all prompts so far.
        cached_tokens: How many of them were not computed again.
        kernels: How the base's products are computed.
    """

    running: int
    waiting: int
    tokens_per_second: float
    first_token_seconds: float | None
    tokens: int
    steps: int
    ended: dict[str, int]
    adapters: int
    adapter_bytes: int
    packed_bytes: int
    adapter_budget: int
    adapter_loads: int
    recorded_bytes: int
    prefix_bytes: int
    prefix_budget: int
    prompt_tokens: int
    cached_tokens: int
    kernels: str

    def prometheus(self) -> str:
        """Return Prometheus' text format.

        Raises:
            InvalidInput: `prometheus_client` is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, generate_latest
        except ImportError:
            msg = "Prometheus text needs prometheus_client: pip install 'one4all_lc[metrics]'."
            raise InvalidInput(msg) from None
        registry = CollectorRegistry()
        registry.register(_Collector(self))
        return str(generate_latest(registry), "utf-8")


_GAUGES = {
    "running": "Requests that hold a row",
    "waiting": "Requests that wait for a row",
    "tokens_per_second": "Tokens chosen in the last ten seconds",
    "first_token_seconds": "Median seconds from submission to first token",
    "adapters": "Adapters in memory",
    "adapter_bytes": "Bytes of adapters in memory",
    "packed_bytes": "Bytes of adapters packed for batches",
    "adapter_budget": "Bytes that adapters may take",
    "recorded_bytes": "Bytes of recorded steps' memory",
    "prefix_bytes": "Bytes of kept beginnings of prompts",
    "prefix_budget": "Bytes that kept beginnings may take",
}
_COUNTERS = {
    "tokens": "Tokens chosen",
    "steps": "Forwards",
    "adapter_loads": "Adapters read from disk",
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Tokens of prompts that were not computed again",
}


class _Collector:
    """Turns one moment into metric families."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def collect(self) -> list[object]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: list[object] = []
        for name, words in _GAUGES.items():
            value = getattr(self._stats, name)
            if value is not None:
                families.append(GaugeMetricFamily(f"one4all_{name}", words, value))
        for name, words in _COUNTERS.items():
            families.append(
                CounterMetricFamily(f"one4all_{name}", words, getattr(self._stats, name))
            )
        ended = CounterMetricFamily("one4all_requests", "Requests that have ended", labels=["how"])
        for how, count in sorted(self._stats.ended.items()):
            ended.add_metric([how], count)
        return [*families, ended]


class Meter:
    """Counts while the engine runs; the engine's thread writes, anybody reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self._first_tokens: deque[float] = deque(maxlen=256)
        self.tokens = self.steps = 0
        self.ended: Counter[str] = Counter()

    def step(self, tokens: int) -> None:
        """Count a forward that gave so many tokens."""
        with self._lock:
            self.steps += 1
            self.tokens += tokens
            self._recent.append((time.monotonic(), tokens))
            self._forget()

    def first_token(self, seconds: float) -> None:
        """Count how long a request waited for its first token."""
        with self._lock:
            self._first_tokens.append(seconds)

    def end(self, how: str) -> None:
        """Count how a request ended."""
        with self._lock:
            self.ended[how] += 1

    @property
    def tokens_per_second(self) -> float:
        """Tokens chosen in the last seconds."""
        with self._lock:
            self._forget()
            return sum(tokens for _, tokens in self._recent) / WINDOW

    @property
    def first_token_seconds(self) -> float | None:
        """Median of the last requests; None before the first."""
        with self._lock:
            return statistics.median(self._first_tokens) if self._first_tokens else None

    def _forget(self) -> None:
        oldest = time.monotonic() - WINDOW
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
