"""Tensors of an expert folder, checked from their bytes before a model sees any of them.

Nothing here imports torch: raw bytes, since numpy knows no bfloat16.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from safetensors import SafetensorError, deserialize

from one4all_lc.errors import UnfitExpert

LARGEST = 65504.0
"""The largest number of float16: beyond it rows could overflow, and zero times infinity is NaN."""

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The types of tensors that are taken, as numpy's; bfloat16, which numpy lacks, by its bits."""


def refuse(folder: Path, what: str, how: str) -> NoReturn:
    """Refuse an expert folder in one sentence.

    Raises:
        UnfitExpert: Always.
    """
    msg = f"{folder} cannot be used: {what}; {how}."
    raise UnfitExpert(msg)


def tensors_in(file: Path, content: bytes) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Yield (name, type, shape, raw bytes), parsed by the library that will load them.

    Raises:
        UnfitExpert: The bytes are not a whole safetensors file.
    """
    try:
        tensors = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        what = f"{file.name} is not a whole safetensors file ({error})"
        refuse(file.parent, what, "save or copy it again")
    for name, tensor in tensors:
        yield name, tensor["dtype"], tuple(tensor["shape"]), tensor["data"]


def check_numbers(folder: Path, name: str, dtype: str, raw: bytes) -> None:
    """Refuse a tensor that holds no floating-point numbers, or some that are not finite.

    Raises:
        UnfitExpert: It does.
    """
    if dtype not in FLOATS:
        refuse(folder, f"tensor {name!r} is of type {dtype}", f"use one of {list(FLOATS)}")
    if not _finite(dtype, raw):
        what = f"tensor {name!r} holds NaN, infinity or a number beyond {LARGEST:.0f}"
        refuse(folder, what, "train the expert again")


def _finite(dtype: str, raw: bytes) -> bool:
    values = np.frombuffer(raw, FLOATS[dtype])
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return bool(np.all(np.abs(values) <= LARGEST))
