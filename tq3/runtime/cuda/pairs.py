"""Pairs of a token and one of its experts, multiplied by several layers of one shape at once."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from tq3.runtime.constants import constant
from tq3.runtime.cuda import calls
from tq3.runtime.cuda.launches import Launcher
from tq3.runtime.cuda.layout import Tiles


class Routing(NamedTuple):
    """Which pairs go to which expert, as the kernel takes it: made once for all stacks of a layer.

    order: (pairs,) int64, the pair that lies at each place; (0,) where pairs lie in their own order
    jobs: (any, 4) int32, of places, as `calls.multiply_jobs` takes them
    """

    order: torch.Tensor
    jobs: torch.Tensor


def route(experts: torch.Tensor, count: int, group: int) -> Routing:
    """The routing of pair i to expert experts[i] of `count` whose rows have groups of `group`.

    Where there are no more pairs than experts, most that occur have one pair, which is a job by
    itself: to read an expert twice takes less time than the kernels of sorting. Computed, never
    timed. The host waits for nothing, so a number beyond the experts can't be refused: it is
    taken modulo `count`.
    experts: (pairs,) int64
    """
    if len(experts) <= count:
        jobs = turns(count, experts.device)[: len(experts)].clone()
        torch.remainder(experts, count, out=jobs[:, 0])
        return Routing(experts.new_empty(0), jobs)
    most = calls.TOKENS_A_COLUMN * _columns(len(experts), count, group)
    return sort_by_expert(experts.remainder(count), count, most)


def sizes(pairs: int, count: int, group: int) -> tuple[int, int]:
    """Lengths of a routing's order and jobs."""
    if pairs <= count:
        return 0, pairs
    return pairs, count + pairs // (calls.TOKENS_A_COLUMN * _columns(pairs, count, group))


def multiply(
    on: Launcher,
    x: torch.Tensor,
    layers: Tiles,
    routing: Routing,
    rows: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Row i of x (pairs, columns) through the expert of pair i, as `linear.linear` gives it.

    Returns (pairs, rows).
    layers: as that takes them, with a dimension for the experts before; only those that occur are
    read
    """
    (order, jobs), n = routing, -(-x.shape[1] // group)
    columns = _columns(len(x), len(layers.words), group)
    placed = x[order] if len(order) else x.contiguous()
    activations = calls.quantise(on, placed, n, layers.words.shape[3], group, rotation)
    found = calls.multiply_jobs(on, layers, activations, rows, group, x.dtype, jobs, columns)
    return torch.empty_like(found).index_copy_(0, order, found) if len(order) else found


@cache
def turns(count: int, device: torch.device) -> torch.Tensor:
    """Jobs of one pair each, but for their experts.  (count, 4) int32"""
    numbers = np.arange(count, dtype=np.int32)
    return constant(np.stack((0 * numbers, numbers, numbers + 1, 0 * numbers), 1), device)


def sort_by_expert(experts: torch.Tensor, count: int, most: int) -> Routing:
    """The routing in which pairs of one expert are neighbours, in jobs of at most `most` of them.

    There are as many jobs as there may be; those that are not needed have no pairs.
    """
    pairs = len(experts)
    order = experts.argsort(stable=True)
    n_pairs = torch.zeros(count, dtype=torch.int64, device=experts.device)
    n_pairs.scatter_add_(0, experts, torch.ones_like(experts))
    starts = n_pairs.cumsum(0) - n_pairs
    jobs_of_each = (n_pairs + most - 1) // most
    last_jobs = jobs_of_each.cumsum(0)
    job = torch.arange(min(count, pairs) + pairs // most, device=experts.device)
    expert = torch.searchsorted(last_jobs, job, right=True).clamp(max=count - 1)
    turn = job - (last_jobs - jobs_of_each)[expert]
    first = starts[expert] + turn * most
    end = torch.minimum(first + most, starts[expert] + n_pairs[expert])
    # Those beyond the last job are turns that their expert doesn't have, and end before they begin.
    jobs = torch.stack((expert, first, end, torch.zeros_like(first)), 1).int()
    return Routing(order, jobs)


def _columns(pairs: int, count: int, group: int) -> int:
    return calls.columns_for(max(1, pairs // count), group)
