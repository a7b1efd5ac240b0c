"""Layers in tiles, multiplied on a device: which kernels, for so many tokens."""

from __future__ import annotations

import torch

from tq3.runtime.cuda import calls, many
from tq3.runtime.cuda.calls import Launcher, Quantise
from tq3.runtime.cuda.layout import Tiles

# Up to so many tokens tensor cores multiply bytes, which is exact, at half their rate for bytes, as
# every activation is two: about the rate for bfloat16. Beyond, decoding costs little beside the
# product, and the vendor's GEMM has larger tiles. Computed, never timed (docs/kernels.md).
MOST_TOKENS = 1024


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

    Bit for bit up to MOST_TOKENS; beyond, weights and activations are rounded to x's dtype and
    multiplied by torch, in float32 as its settings for TF32 are.
    x: (tokens, columns); layer: of `layout.repack`
    quantise: what to call for `calls.quantise`
    """
    n = -(-x.shape[1] // group)
    if len(x) > MOST_TOKENS:
        return many.multiply_decoded(on, layer, x, rows, n, group, rotation)
    activations = quantise(on, x, n, layer.words.shape[2], group, rotation)
    return calls.multiply(on, layer, activations, rows, group, x.dtype)


def experts(
    on: Launcher,
    x: torch.Tensor,
    layers: Tiles,
    experts: torch.Tensor,
    rows: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Row i of x (pairs, columns) through layer experts[i], as `linear` gives it.  (pairs, rows)

    layers: as `linear` takes them, with a dimension for the experts before; only those that occur
    are read. The host waits for nothing.
    """
    count, n = len(layers.words), -(-x.shape[1] // group)
    columns = calls.columns_for(max(1, len(x) // count), group)
    order, jobs = sort_by_expert(experts, count, calls.TOKENS_A_COLUMN * columns)
    activations = calls.quantise(on, x[order], n, layers.words.shape[3], group, rotation)
    found = calls.multiply_jobs(on, layers, activations, rows, group, x.dtype, jobs, columns)
    return torch.empty_like(found).index_copy_(0, order, found)


def sort_by_expert(
    experts: torch.Tensor, count: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order in which pairs of one expert are neighbours, and jobs of at most `most` of them.

    Returns the numbers of pairs (pairs,) int64, and jobs (as many as there may be, 4) int32 as
    `calls.multiply_jobs` takes them.
    """
    pairs = len(experts)
    order = experts.argsort(stable=True)
    sizes = torch.zeros(count, dtype=torch.int64, device=experts.device)
    sizes.scatter_add_(0, experts, torch.ones_like(experts))
    starts = sizes.cumsum(0) - sizes
    jobs_of_each = (sizes + most - 1) // most
    last_jobs = jobs_of_each.cumsum(0)
    job = torch.arange(min(count, pairs) + pairs // most, device=experts.device)
    expert = torch.searchsorted(last_jobs, job, right=True).clamp(max=count - 1)
    turn = job - (last_jobs - jobs_of_each)[expert]
    first = starts[expert] + turn * most
    end = torch.minimum(first + most, starts[expert] + sizes[expert])
    # Those beyond the last job are turns that their expert doesn't have, and end before they begin.
    jobs = torch.stack((expert, first, end, torch.zeros_like(first)), 1).int()
    return order, jobs
