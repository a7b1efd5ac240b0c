"""What others do with the same shapes: torch's own int4 and Humming's kernels, where they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu.layers import name_of
from gpu.machine import Machine
from gpu.plan import Plan
from gpu.rows import Cases, Row, Skipped
from gpu.timing import (
    DTYPE,
    GROUP,
    Ceilings,
    activations,
    ceilings,
    ring_of,
    seconds_a_call,
    speed,
)


class Peer(NamedTuple):
    """weights: of one layer, and the bytes that a call reads. call: of x and weights"""

    weights: torch.Tensor
    n_bytes: int
    call: Callable[[torch.Tensor, torch.Tensor], Any]


def peers(gpu: Machine, plan: Plan) -> Cases:
    """The two largest shapes of a layer, for all few tokens; what is not there is skipped."""
    most = ceilings(gpu, plan.ring_bytes)
    makes: dict[str, Callable[[Machine, tuple[int, int]], Peer]] = {
        "torch's int4": torch_int4,
        "Humming's uint3": partial(humming, "uint3"),
        "Humming's uint4": partial(humming, "uint4"),
    }
    for name, make in makes.items():
        for shape in plan.shapes[:2]:
            yield f"{name}, {name_of(shape)}", partial(_measure, gpu, most, plan, make, shape)


def _measure(
    gpu: Machine,
    most: Ceilings,
    plan: Plan,
    make: Callable[[Machine, tuple[int, int]], Peer],
    shape: tuple[int, int],
) -> Row:
    peer = make(gpu, shape)
    ring = ring_of(peer.weights.clone, peer.n_bytes, plan.ring_bytes)
    row: Row = {}
    for tokens in plan.few:
        x = activations(tokens, shape[1], device=gpu.device)
        found = speed(seconds_a_call(gpu, ring, partial(peer.call, x)), peer.n_bytes, most)
        for column, value in found.items():
            row.setdefault(column, {})[f"{tokens} tokens"] = value
    return row


def torch_int4(gpu: Machine, shape: tuple[int, int]) -> Peer:
    """gpt-fast's kernel, a part of torch."""
    rows, columns = shape
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=gpu.device)
    try:
        packed = torch._convert_weight_to_int4pack(codes, 8)
    except NotImplementedError:
        raise Skipped(f"torch has no int4 for {gpu.device.type}") from None
    scales = torch.rand(columns // GROUP, rows, 2, dtype=DTYPE, device=gpu.device)

    def call(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm(x, weights, GROUP, scales)

    return Peer(packed, packed.nbytes + scales.nbytes, call)


def humming(width: str, gpu: Machine, shape: tuple[int, int]) -> Peer:
    """vLLM's kernels for weights of 3 bits: `pip install humming-kernels`."""
    try:
        from humming.layer import HummingLayer  # noqa: PLC0415  may be missing
    except ImportError as error:
        raise Skipped(f"humming-kernels can't be imported: {error}") from None
    options = {"b_dtype": width, "weight_scale_group_size": GROUP}
    layer = HummingLayer(*shape, options, torch_dtype=DTYPE).to(gpu.device)
    layer.load_from_unquantized(torch.randn(shape, dtype=DTYPE, device=gpu.device))
    layer.to(gpu.device)
    layer.transform()

    def call(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        layer.weight.data = weights
        found: torch.Tensor = layer(x)
        return found

    return Peer(layer.weight.data, layer.weight.nbytes + layer.weight_scale.nbytes, call)
