"""A packed linear layer on the processor: compiled kernels, and torch's GEMM for many tokens."""

from __future__ import annotations

import sys

import torch

import tq3.runtime._linear as _linear  # noqa: PLR0402  a missing module must be told from a broken one
from tq3.runtime.native import get_kernels

# Up to so many tokens the integer kernel beats decoding and multiplying (docs/kernels.md), by the
# type that would be multiplied. bfloat16 is that type only where torch has AMX.
_WITHOUT_BLOCKS = {torch.bfloat16: 16, torch.float32: 32}
MOST_TOKENS = {
    "amx": {torch.bfloat16: 128, torch.float32: sys.maxsize},
    "avx512vnni": {torch.bfloat16: 16, torch.float32: 512},
    "avx2": {torch.bfloat16: 16, torch.float32: 512},
    "neon": _WITHOUT_BLOCKS,
    "portable": _WITHOUT_BLOCKS,
}
# Asked once: the question is an instruction that stops a virtual machine for 10 us.
_FAST_BF16 = _linear.multiplies_bf16_fast()
# Decoded weights at a time: few enough to stay in a core's cache until they are multiplied.
TILE_WEIGHTS = 1 << 21


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Arguments and result as in `tq3.runtime.reference.linear`; equal to it for few tokens."""
    x, kernels = x.contiguous(), get_kernels()
    most = MOST_TOKENS[kernels.name][multiplied_as(x)]
    if len(x) > most:
        return multiply_tiles(x, packed, norms, bits, group, rotation)
    out = x.new_empty(len(x), len(norms))
    kernels.linear(x, packed, norms, bits, group, rotation, out)
    return out


def multiply_tiles(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """The same for many tokens: decode some rows in rotated space, multiply, forget them."""
    kernels = get_kernels()
    rows, n = norms.shape
    columns = n * group
    dtype = multiplied_as(x)
    rotated = x.new_empty(len(x), columns, dtype=dtype)
    kernels.rotate(x, bits, group, rotation, rotated)
    out = x.new_empty(len(x), rows)
    step = max(1, min(rows, TILE_WEIGHTS // columns))
    tile = x.new_empty(step, columns, dtype=dtype)
    for first in range(0, rows, step):
        part = tile[: rows - first]
        kernels.decode(packed, norms, bits, group, first, part)
        out[:, first : first + step] = rotated @ part.T
    return out


def multiplied_as(x: torch.Tensor) -> torch.dtype:
    """bfloat16 where the processor has matrix units for it, float32 everywhere else."""
    return torch.bfloat16 if _FAST_BF16 and x.dtype == torch.bfloat16 else torch.float32
