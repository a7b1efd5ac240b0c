"""Layers of real shapes: each kernel by itself, and where decoding and a GEMM become faster."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu.machine import Machine
from gpu.plan import Plan
from gpu.rows import Cases, Row
from gpu.timing import (
    GROUP,
    PART_FOR_MANY,
    Ceilings,
    Item,
    Through,
    activations,
    bytes_of,
    ceilings,
    dense_of,
    seconds_a_call,
    seconds_of_kernels,
    speed,
    tiles_of,
)

from tq3.runtime.cuda import linear
from tq3.runtime.cuda.calls import Launcher
from tq3.runtime.cuda.crossings import Crossing
from tq3.runtime.cuda.layout import Tiles

ALWAYS, NEVER = 0, 1 << 30


def limits(gpu: Machine, plan: Plan) -> Cases:
    """What memory and launches allow."""

    def measure() -> Row:
        copy, read, gap = ceilings(gpu, plan.ring_bytes)
        return {"copy GB/s": copy / 1e9, "read GB/s": read / 1e9, "gap us": gap * 1e6}

    yield "copy, read, empty kernels of a graph", measure


def kernels(gpu: Machine, plan: Plan) -> Cases:
    """A call of few tokens, and each of its kernels; of many, those of the decoded path."""
    most = ceilings(gpu, plan.ring_bytes)
    for bits in (3, 4):
        for shape in (*plan.shapes, plan.head):
            ring = tiles_of(gpu, (), shape, bits, plan.ring_bytes)
            dense = dense_of(gpu, shape, plan.ring_bytes)
            for tokens in plan.few:
                task = partial(_of_layer, gpu, most, ring, dense, shape, tokens, NEVER)
                yield f"{name_of(shape)}, {bits} bits, {tokens} tokens", task
            if shape != plan.head:
                few, dense = _part_of(ring), _part_of(dense)
                tokens = plan.many[-1]
                task = partial(_of_layer, gpu, most, few, dense, shape, tokens, ALWAYS)
                yield f"{name_of(shape)}, {bits} bits, {tokens} tokens, decoded", task


def _part_of(ring: list[Item]) -> list[Item]:
    return ring[: -(-len(ring) // PART_FOR_MANY)]


def _of_layer(
    gpu: Machine,
    most: Ceilings,
    ring: list[Tiles],
    dense: list[torch.Tensor],
    shape: tuple[int, int],
    tokens: int,
    crossing: int,
) -> Row:
    x = activations(tokens, shape[1], device=gpu.device)

    def call(on: Launcher, layer: Tiles) -> object:
        return linear.linear(Through(on, most_tokens=crossing), x, layer, shape[0], GROUP, GROUP)

    whole = seconds_a_call(gpu, ring, partial(call, gpu.on))
    in_turn = seconds_a_call(gpu, ring, lambda layer: call(Through(gpu.on, in_turn=True), layer))
    alone = seconds_of_kernels(gpu, ring, call, most.gap)
    products = sum(time for name, time in alone.items() if not name.startswith("rotate"))
    bf16 = seconds_a_call(gpu, dense, partial(F.linear, x))
    return speed(whole, bytes_of(ring[0]), most) | {
        "in turn us": in_turn * 1e6,
        "alone us": {name: time * 1e6 for name, time in alone.items()},
        "alone % of read": 100 * bytes_of(ring[0]) / products / most.read,
        "bf16 us": bf16 * 1e6,
        "x bf16": bf16 / whole,
    }


def crossings(gpu: Machine, plan: Plan) -> Cases:
    """Integers beside decoding and GEMM, by tokens and the size of pieces, at 3 bits."""
    gpu.warm()
    for shape in plan.shapes:
        ring = tiles_of(gpu, (), shape, 3, plan.ring_bytes // PART_FOR_MANY)
        for tokens in plan.many:
            task = partial(_both_ways, gpu, ring, shape, tokens, plan.pieces)
            yield f"{name_of(shape)}, {tokens} tokens", task


def _both_ways(
    gpu: Machine, ring: list[Tiles], shape: tuple[int, int], tokens: int, pieces: tuple[int, ...]
) -> Row:
    x = activations(tokens, shape[1], device=gpu.device)

    def microseconds(**crossing: Any) -> float:
        def call(layer: Tiles) -> object:
            on = Through(gpu.on, **crossing)
            return linear.linear(on, x, layer, shape[0], GROUP, GROUP)

        return seconds_a_call(gpu, ring, call) * 1e6

    decoded = {
        str(piece): microseconds(most_tokens=ALWAYS, piece_weights=piece) for piece in pieces
    }
    integers = microseconds(most_tokens=NEVER)
    return {
        "shape": name_of(shape),
        "tokens": tokens,
        "integers us": integers,
        "decoded us": decoded,
    }


def crossing_from(rows: list[Row], origin: str) -> Crossing:
    """What rows of `crossings` say: the piece that takes the least time over all of them, and the
    most tokens up to which integers are as fast, in the sum over all shapes; half of the fewest
    that were measured where even these are faster decoded.
    """
    by_tokens: dict[int, list[Row]] = {}
    for row in rows:
        by_tokens.setdefault(row["tokens"], []).append(row)
    most_shapes = max(map(len, by_tokens.values()))
    whole = {tokens: of for tokens, of in sorted(by_tokens.items()) if len(of) == most_shapes}

    def decoded(piece: str, of: list[Row]) -> float:
        return float(sum(row["decoded us"][piece] for row in of))

    pieces = rows[0]["decoded us"]
    piece = min(pieces, key=lambda piece: sum(decoded(piece, of) for of in whole.values()))
    most = min(whole) // 2
    for tokens, of in whole.items():
        if sum(row["integers us"] for row in of) > decoded(piece, of):
            break
        most = tokens
    return Crossing(most, int(piece), origin)


def name_of(shape: tuple[int, int]) -> str:
    """As "17408x5120"."""
    return "x".join(map(str, shape))
