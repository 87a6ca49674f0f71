"""A peer's process as the benchmark sees it: asked over pipes, and stopped while others work."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.peer_environments import PeerMissing

ROOT = Path(__file__).parents[2]
CLOSING_SECONDS = 20


class PeerProcess:
    """One peer, in a process group of its own, which runs only while it answers.

    Peers busy-wait: OpenMP's threads after a step, vLLM's scheduler for its worker. SIGSTOP for
    the whole group keeps the cores free for whoever is measured. If this process dies, the kernel
    wakes and ends the group, since it is of the same session.

    Args:
        python: The interpreter of the peer's environment.
        module: Its module, run as a script.
        settings: What the module is told.
        environment: Variables added to this process's own.
        log: Where its standard error goes.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module, json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
                process_group=0,
            )
        try:
            self._reply()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def run(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], tokens: int
    ) -> tuple[float, list[int]]:
        """Return the seconds that the peer took and how many tokens each row has.

        Raises:
            PeerMissing: The process ended.
        """
        request = {"prompts": prompts, "adapters": adapters, "tokens": tokens}
        self._signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):  # `_reply` says why
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            reply = self._reply()
        finally:
            self._signal(signal.SIGSTOP)
        return reply["seconds"], reply["counts"]

    def close(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            last = next((item for item in reversed(text.split("\n")) if item.strip()), "no word")
            msg = f"its process ended: {last.strip()[:300]} (all of it in {self._log})"
            raise PeerMissing(msg)
        return json.loads(line)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
