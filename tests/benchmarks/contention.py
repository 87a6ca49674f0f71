"""How much of the machine others use while a case runs: what they take makes figures worthless."""

import os
import time
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
TOLERATED_CORES = 0.1
LEAST_SECONDS = 0.2


def watch() -> Callable[[], float | None]:
    """Start watching; call the result for the cores that others have used since, on average.

    Others are all processes but this one and its descendants, and the host of a virtual machine.
    None where the kernel does not tell.
    """
    if not (PROC / "stat").exists():
        return lambda: None
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    started, everybody, own = time.monotonic(), _everybody(), _own()

    def cores() -> float:
        ticks = _everybody() - everybody - (_own() - own)
        # Ticks are coarse: one of them must not look like a core, nor its lack like less than none.
        seconds = max(time.monotonic() - started, LEAST_SECONDS)
        return max(0.0, round(ticks / ticks_per_second / seconds, 2))

    return cores


def _everybody() -> int:
    """Return the ticks that all cores were busy, or taken away by the host."""
    line = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, line.split()[1:9])
    return user + nice + system + irq + softirq + steal


def _own() -> int:
    """Return the ticks of this process and its descendants."""
    parents, ticks = {}, {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])
    own, found = set(), {os.getpid()}
    while found:
        own |= found
        found = {process for process, parent in parents.items() if parent in found} - own
    return sum(ticks.get(process, 0) for process in own)
