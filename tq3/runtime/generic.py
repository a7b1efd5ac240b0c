"""A packed linear layer on any torch device: decode some rows, multiply, forget them.

The weights stay rotated, as they are stored; the activations are rotated instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tq3.runtime import arithmetic as fixed

# Decoded weights at a time: 8 MiB of float32, and three times as much on the way there.
TILE_WEIGHTS = 1 << 21


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Arguments and result as in `tq3.runtime.reference.linear`, equal to it within rounding."""
    rows, n = norms.shape
    packed = packed.view(rows * n, group * bits // 8)
    rotated = rotate(x, n, group, rotation).to(multiplied_as(x))
    out = x.new_empty(x.shape[0], rows)
    step = max(1, TILE_WEIGHTS // (n * group))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        tile = decode(packed[first * n : last * n], norms[first:last], bits, group)
        out[:, first:last] = rotated @ tile.to(rotated.dtype).T
    return out


def ready(*_: object) -> None:
    """As `direct.ready` says: what decodes at each use has nothing to gain."""
    return None


def rotate(x: torch.Tensor, n: int, group: int, rotation: int) -> torch.Tensor:
    """D2 H D1 of each group, for weights that stay rotated.  (tokens, n * group) float32"""
    first, _ = fixed.signs(group, x.device)
    factors = fixed.factors(group, rotation, x.device)
    padded = F.pad(x.float(), (0, n * group - x.shape[-1]))
    groups = padded.reshape(len(x), n, group)
    rotated: torch.Tensor = fixed.transform(groups * first, rotation) * factors
    return rotated.reshape(len(x), n * group)


def decode(packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Weights in rotated space.  (rows, n * group) float32"""
    levels = fixed.codebook(bits, group, packed.device)[unpack(packed, bits)]
    weights: torch.Tensor = levels.reshape(*norms.shape, group) * norms[..., None]
    return weights.reshape(len(norms), -1)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack as `reference.unpack` does, in less memory: eight codes lie in `bits` whole bytes.

    (groups, group * bits / 8) uint8 -> (groups, group) int32
    """
    parts = packed.reshape(-1, bits).int()
    words = parts[:, 0]
    for i in range(1, bits):
        words = words | parts[:, i] << 8 * i
    shifts = torch.arange(0, 8 * bits, bits, dtype=torch.int32, device=packed.device)
    codes: torch.Tensor = words[:, None] >> shifts & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1)


def multiplied_as(x: torch.Tensor) -> torch.dtype:
    """Processors multiply float32 fastest, other devices what the activations are."""
    return torch.float32 if x.device.type == "cpu" else x.dtype
