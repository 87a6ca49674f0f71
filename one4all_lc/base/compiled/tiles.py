"""AMX: registers that hold 16 rows of 64 bytes, and an instruction that multiplies two of them."""

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numba.core.codegen import get_host_cpu_features

from one4all_lc.base.compiled.vectors import BYTES, Code, keep, multiplies_pairs, written

ROWS, TILES = 16, 8
"""Rows of a tile, at most; tiles."""

_ASK, _TILE_DATA = 0x1023, 18
_ARCH_PRCTL = 158
"""Linux gives the registers to a process that asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM)."""


@cache
def multiplies_tiles() -> bool:
    """Whether this processor has AMX for bfloat16, and the system lets this process use it."""
    features = get_host_cpu_features().split(",")
    if not multiplies_pairs() or "+amx-bf16" not in features or sys.platform != "linux":
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK, _TILE_DATA)
    return not refused


def fits(dtype: torch.dtype) -> bool:
    """Whether kernels with tiles run on tensors of this type."""
    return dtype == torch.bfloat16 and multiplies_tiles()


@written
def _save(code: Code, address: Any) -> None:
    code.save_tiles(address)


@written
def _load(code: Code, address: Any) -> None:
    code.configure_tiles(address)


@njit
def whole_tiles() -> Any:
    """Return rows and bytes of a row of every tile, shape (8, 2), all whole."""
    shapes = np.empty((TILES, 2), np.int64)
    shapes[:, 0], shapes[:, 1] = ROWS, BYTES
    return shapes


@njit
def of_rows(rows: Any, some: Any) -> Any:
    """Return the shapes of all tiles where the first ones have so many rows."""
    shapes = whole_tiles()
    shapes[:some, 0] = rows
    return shapes


@njit
def saved() -> Any:
    """Return how tiles are configured.

    oneDNN, which shares the thread, may count on what it has configured: `restore` it.
    """
    before = np.empty(BYTES, np.uint8)
    _save((before.ctypes.data,))
    keep(before)
    return before


@njit
def configure(shapes: Any) -> None:
    """Give tiles shapes, as `whole_tiles` has them."""
    wanted = np.zeros(BYTES, np.uint8)
    wanted[0] = 1  # the palette
    for tile in range(TILES):
        wanted[16 + 2 * tile] = shapes[tile, 1]
        wanted[48 + tile] = shapes[tile, 0]
    _load((wanted.ctypes.data,))
    keep(wanted)


@njit
def restore(before: Any) -> None:
    """Configure tiles as they were."""
    _load((before.ctypes.data,))
    keep(before)
