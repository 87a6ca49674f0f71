"""How an NF4 weight lies in memory, and how its codes become bfloat16.

    y[row, i] = sum over blocks b of scale[i, b] * (sum over k in b of x[row, k] * value[i, k])

A weight lies in memory as it is read: units of 32 outputs, in them blocks of 64 inputs, and of each
block first the codes, then the scales.

    codes   (8 steps, 2 vectors, 16 outputs, 2 inputs) of 16 bits: four codes, inputs two apart
    scales  (2 vectors, 16 outputs) of float32

One instruction turns 32 codes into bfloat16: pairs of inputs that lie beside each other.
"""

from typing import Any

import torch
from torch import Tensor

from one4all_lc.base.compiled.vectors import BYTES, CODES, Code, aligned_copy, written

OUTPUTS, BLOCK = 32, 64
"""Outputs of a unit of work; inputs that share a scale."""

STEPS, VECTORS = 8, 2
"""A block's codes: so many times so many vectors; a step is eight inputs, a vector 16 outputs."""
INPUTS = BLOCK // STEPS
STEP_BYTES = VECTORS * BYTES
CODE_BYTES = STEPS * STEP_BYTES
PAIR_BYTES = INPUTS // 2 * CODE_BYTES
"""A block's codes as bfloat16."""
BLOCK_BYTES = CODE_BYTES + VECTORS * BYTES

AHEAD = 4 * BLOCK_BYTES
"""How far ahead memory is asked for."""

# fmt: off
VALUES = (
    0xBF80, 0xBF32, 0xBF06, 0xBECA, 0xBE92, 0xBE3D, 0xBDBB, 0x0000,
    0x3DA3, 0x3E25, 0x3E7C, 0x3EAD, 0x3EE2, 0x3F10, 0x3F39, 0x3F80,
)
# fmt: on
"""NF4's 16 values as bits of bfloat16. Source: Dettmers et al., QLoRA, 2023."""


def turned(code: Code, codes: list[Any], pair: int) -> list[Any]:
    """Return what the codes of one pair stand for, of each vector."""
    return [code.looked_up(vector, 4 * pair, VALUES) for vector in codes]


@written
def turn(code: Code, weight: Any, out: Any) -> None:
    """Turn a block's codes into (32 pairs, 2 vectors, 16 outputs, 2 inputs) of bfloat16."""

    def step(number: Any, _: list[Any]) -> list[Any]:
        at = code.at(weight, code.times(number, STEP_BYTES))
        codes = [code.load(CODES, code.at(at, t * BYTES)) for t in range(VECTORS)]
        for t in range(VECTORS):
            code.fetch(code.at(at, t * BYTES, AHEAD))
        place = code.at(out, code.times(number, INPUTS // 2 * STEP_BYTES))
        for pair in range(INPUTS // 2):
            for t, values in enumerate(turned(code, codes, pair)):
                code.store(values, code.at(place, (pair * VECTORS + t) * BYTES))
        return []

    code.loop(code.number(STEPS), [], step)


def packed(codes: Tensor, scales: Tensor) -> Tensor:
    """Lay a weight out as it is read.

    Args:
        codes: Shape (outputs, inputs), numbers from 0 to 15.
        scales: Shape (outputs, inputs / BLOCK), float32.

    Returns:
        Bytes, the first at a multiple of `BYTES`.
    """
    outputs, features = codes.shape
    units, blocks = outputs // OUTPUTS, features // BLOCK
    # (units, vectors, 16 outputs, blocks, steps, four pairs, two inputs)
    split = codes.view(units, VECTORS, -1, blocks, STEPS, INPUTS // 2, 2)
    words = split[..., 0, :].to(torch.int16)
    for pair in range(1, INPUTS // 2):
        words |= split[..., pair, :].to(torch.int16) << (4 * pair)
    words = words.permute(0, 3, 4, 1, 2, 5).contiguous().view(torch.uint8)
    factors = scales.float().view(units, VECTORS, -1, blocks).permute(0, 3, 1, 2).contiguous()
    both = [part.reshape(units * blocks, -1).view(torch.uint8) for part in (words, factors)]
    return aligned_copy(torch.cat(both, 1).flatten())
