"""The integer arithmetic of a packed linear layer, as numbers. docs/kernels.md specifies it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from tq3.codec import tables
from tq3.runtime.constants import constant

# Positive halves of the codebooks as whole numbers, and the factor that gives them back their size:
# levels = factor * integers, exactly for 2 bits, within 1.2e-6 for 3 and 1.11e-5 for 4 (squared,
# relative, on Gaussian weights). No int8 codebook is closer: for each factor the best integers are
# the nearest ones, so that all there are can be tried (tests/runtime/test_linear_reference.py).
LEVELS = {2: (3, 10), 3: (10, 31, 55, 88), 4: (5, 16, 27, 39, 52, 67, 86, 114)}
FACTOR = {2: 0.151, 3: 0.024434769921949727, 4: 0.023852298471808437}
# Of a quantised activation: 127 * 256, so that its high byte fits a signed one.
LARGEST = 32512
# Below, a block of activations counts as zeros: its scale would not be a float32.
SMALLEST = 2.0**-100
# Sums of groups, added up side by side in this many floats.
PARTIAL_SUMS = 8


@cache
def integer_codebook(bits: int) -> tuple[int, ...]:
    """All levels, code 0 first.  2**bits integers, at most 127 in size"""
    half = LEVELS[bits]
    return (*(-level for level in reversed(half)), *half)


@cache
def unit(bits: int, group: int, rotation: int) -> float:
    """What one step of level times one step of activation is worth, before their scales: float32.

    1/sqrt(group) of the codebook and 1/sqrt(rotation) of the transform are in it.
    """
    return float(np.float32(FACTOR[bits] / math.sqrt(group * rotation)))


@cache
def signs(group: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """D1 and D2 of the format.  Two (group,) float32"""
    first, second = tables.signs(group)
    return constant(first, device), constant(second, device)


@cache
def factors(group: int, rotation: int, device: torch.device) -> torch.Tensor:
    """D2 and the transform's 1/sqrt(rotation) in one.  (group,) float32"""
    _, second = tables.signs(group)
    return constant(second / np.float32(math.sqrt(rotation)), device)


@cache
def codebook(bits: int, group: int, device: torch.device) -> torch.Tensor:
    """The levels that the format fixes.  (2**bits,) float32"""
    return constant(tables.codebook(bits, group), device)


def transform(x: torch.Tensor, block: int) -> torch.Tensor:
    """Walsh-Hadamard transform of each block of the last dimension, without its 1/sqrt(block).

    float32 butterflies (a + b, a - b) with strides block/2, ..., 2, 1.
    """
    shape = x.shape
    for stride in (block >> step for step in range(1, int(math.log2(block)) + 1)):
        pairs = x.reshape(-1, 2, stride)
        a, b = pairs[:, 0], pairs[:, 1]
        x = torch.stack((a + b, a - b), 1)
    return x.reshape(shape)
