"""Processes that end themselves by SIGKILL at a chosen moment of what they do to the disk."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Every look at or change of the file system that Python makes is an audit event; the call that
# exchanges two folders is found by `ctypes`, which is one too. The process kills itself before the
# event of the chosen number, so that moments lie on both sides of every step.
_PROGRAM = """
import os, signal, sys
WATCHED = ("open", "os.", "shutil.", "ctypes.dlsym")
count, last = 0, int(sys.argv[1])
{prepare}
def watch(event, arguments):
    global count
    if event.startswith(WATCHED):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
{work}
last = 0
print(count)
"""


def run_until(moment: int, prepare: str, work: str, arguments: Sequence[object] = ()) -> int | None:
    """Run a program in a process of its own until the event of a number.

    Args:
        moment: The event's number; 0 lets the process end by itself.
        prepare: What it does before events are counted.
        work: What it does while they are.
        arguments: `sys.argv[2:]` of it.

    Returns:
        How many events there were; None if the process was killed.
    """
    program = _PROGRAM.format(prepare=prepare, work=work)
    ended = subprocess.run(
        [sys.executable, "-c", program, str(moment), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    if ended.returncode == -9:
        return None
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)
