"""Experts beside torch's: one linear for each that occurs."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from gpu.machine import Machine
from gpu.plan import Moe, Plan
from gpu.rows import Cases, Row
from gpu.timing import (
    GROUP,
    Ceilings,
    activations,
    bytes_of,
    ceilings,
    dense_of,
    seconds_a_call,
    speed,
    tiles_of,
)

from tq3.runtime.cuda import pairs
from tq3.runtime.cuda.layout import Tiles


def experts(gpu: Machine, plan: Plan) -> Cases:
    """All widths and numbers of tokens."""
    most, moe = ceilings(gpu, plan.ring_bytes), plan.moe
    dense = dense_of(gpu, (moe.experts, moe.rows, moe.columns), plan.ring_bytes)
    for bits in (3, 4):
        ring = tiles_of(gpu, (moe.experts,), (moe.rows, moe.columns), bits, plan.ring_bytes)
        for tokens in plan.moe_tokens:
            shape = f"{moe.experts} of {moe.rows}x{moe.columns}, {moe.a_token} a token"
            task = partial(_measure, gpu, most, ring, dense, choose(tokens, moe), moe)
            yield f"{shape}, {bits} bits, {tokens} tokens", task


def _measure(
    gpu: Machine,
    most: Ceilings,
    ring: list[Tiles],
    dense: list[torch.Tensor],
    chosen: torch.Tensor,
    moe: Moe,
) -> Row:
    used = len(chosen.unique())
    ours, torchs = seconds(gpu, ring, dense, chosen, moe)
    n_bytes = bytes_of(ring[0]) * used // moe.experts
    beside = {"bf16 us": torchs * 1e6, "x bf16": torchs / ours}
    return {"experts read": used} | speed(ours, n_bytes, most) | beside


def seconds(
    gpu: Machine, ring: list[Tiles], dense: list[torch.Tensor], chosen: torch.Tensor, moe: Moe
) -> tuple[float, float]:
    """Of ours and of torch's. Each layer is called with others of its experts in turn, so that a
    round reads most of the ring: a cache holds the few that a token takes.
    """
    x = activations(len(chosen), moe.columns, device=gpu.device)
    used, pairs_of = chosen.unique(return_counts=True)
    parts = list(zip(used.tolist(), x.split(pairs_of.tolist()), strict=True))
    turns = [turn * len(used) for turn in range(moe.experts // len(used))]
    others = {turn: ((chosen + turn) % moe.experts).to(gpu.device) for turn in turns}

    def ours(work: tuple[Tiles, int]) -> None:
        layers, turn = work
        routing = pairs.route(others[turn], moe.experts, GROUP)
        pairs.multiply(gpu.on, x, layers, routing, moe.rows, GROUP, GROUP)

    def torchs(work: tuple[torch.Tensor, int]) -> None:
        weights, turn = work
        for expert, part in parts:
            F.linear(part, weights[(expert + turn) % moe.experts])

    return (
        seconds_a_call(gpu, list(product(ring, turns)), ours),
        seconds_a_call(gpu, list(product(dense, turns)), torchs),
    )


def choose(tokens: int, moe: Moe) -> torch.Tensor:
    """Different experts for each token, drawn.  (tokens * a_token,) int64, on the processor"""
    rng = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, moe.experts, generator=rng)
    chosen: torch.Tensor = scores.topk(moe.a_token, dim=1).indices
    return chosen.flatten()
