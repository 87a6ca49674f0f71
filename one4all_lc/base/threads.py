"""The engine's threads keep the processor to themselves.

Every Python thread that multiplies gets OpenMP threads of its own, and they stay when it is done.
As soon as there are more of them than cores, GNU's OpenMP lets all of them sleep between two
products instead of waiting awake, and waking up takes longer than a small product: on two cores a
step of the engine then takes twice as long. So whoever multiplies outside the engine's thread lets
go at once.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_HARD = 2
"""`omp_pause_hard`: the threads end; the next product makes new ones."""


def let_go() -> None:
    """End the OpenMP threads of the calling thread; its next product makes new ones."""
    # torch loads its OpenMP for all to see; where there is another or none, nothing is gained.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).omp_pause_resource_all(_HARD)


@contextlib.contextmanager
def passing_threads() -> Iterator[None]:
    """Let go of the calling thread's OpenMP threads at the end of the block."""
    try:
        yield
    finally:
        let_go()


def compute_alone() -> None:
    """Let the calling thread compute without others: it works beside the engine's."""
    import torch

    torch.get_num_threads()  # torch sets the number at a thread's first use
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).omp_set_num_threads(1)
