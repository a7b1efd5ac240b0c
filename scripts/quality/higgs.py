"""HIGGS as Transformers ships it: its grids, its Hadamard transform of 1024, its scales.

`transformers.integrations.higgs.quantize_with_higgs` needs a GPU's kernels; this is its arithmetic.
Rows of these models are no multiple of 1024, so the transform runs across the ends of rows here:
Transformers itself would pad rows of 640 to 1024 and store 1.6 times the bits.
"""

from __future__ import annotations

import torch
from transformers.integrations.higgs import get_higgs_grid

from quality.ours import Coded

HADAMARD = 1024
_GROUP = 256  # a scale is stored for so many weights, though all of a transform share it
_SCALE_BITS = 16
_PAIR = 2
_PAIRS_AT_ONCE = 1 << 16


def code(weight: torch.Tensor, bits: int) -> Coded:
    """weight: (rows, cols) float32. Two weights share a code of a grid of 2^(2 bits) points."""
    grid = get_higgs_grid(_PAIR, 1 << (_PAIR * bits))
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % HADAMARD)).view(-1, HADAMARD)
    scales = padded.norm(dim=1, keepdim=True)
    unit = torch.where(scales > 0, _hadamard(padded) / scales, 0.0)
    halves = (grid**2).sum(-1) / 2
    pairs = unit.view(-1, _PAIR).split(_PAIRS_AT_ONCE)
    nearest = torch.cat([grid[(part @ grid.T - halves).argmax(-1)] for part in pairs])
    stored = (scales / HADAMARD**0.5).half().float()
    decoded = _hadamard(nearest.view_as(unit)) * stored / HADAMARD**0.5
    size = padded.numel() * bits + padded.numel() // _GROUP * _SCALE_BITS
    return Coded(decoded.flatten()[: len(flat)].view_as(weight), size)


def _hadamard(rows: torch.Tensor) -> torch.Tensor:
    """Walsh-Hadamard transform of each row, not normalised."""
    stride = rows.shape[1] // 2
    while stride:
        pairs = rows.view(len(rows), -1, 2, stride)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([a + b, a - b], 2).view_as(rows)
        stride //= 2
    return rows
