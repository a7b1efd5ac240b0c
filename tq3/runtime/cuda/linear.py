"""Layers in tiles, multiplied on a device: which kernels, for so many tokens."""

from __future__ import annotations

import torch

from tq3.runtime.cuda import calls, many
from tq3.runtime.cuda.calls import Quantise
from tq3.runtime.cuda.launches import Launcher
from tq3.runtime.cuda.layout import Tiles


def linear(
    on: Launcher,
    x: torch.Tensor,
    layer: Tiles,
    rows: int,
    group: int,
    rotation: int,
    quantise: Quantise = calls.quantise,
) -> torch.Tensor:
    """What `tq3.runtime.reference.linear` computes.  (tokens, rows), in x's dtype

    Bit for bit up to `on.crossing.most_tokens`; beyond, weights and activations are rounded to x's
    dtype and multiplied by torch, in float32 as its settings for TF32 are.
    x: (tokens, columns); layer: of `layout.repack`
    quantise: what to call for `calls.quantise`
    """
    n = -(-x.shape[1] // group)
    if len(x) > on.crossing.most_tokens:
        return many.multiply_decoded(on, layer, x, rows, n, group, rotation)
    activations = quantise(on, x, n, layer.words.shape[2], group, rotation)
    return calls.multiply(on, layer, activations, rows, group, x.dtype)
