"""How near a layer of a real shape is to what memory can do, beside torch's bfloat16 linear.

Each layer exists many times over, more than the last cache holds, and a CUDA graph calls one after
the other: neither the host nor a cache is measured. Bytes are those of codes and norms, and a share
is one of what a copy from device to device reads and writes in the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu.cases import REAL_SHAPES
from gpu.machine import Machine
from gpu.section import Row, Section

from tq3.runtime.cuda import calls, layout, linear, many
from tq3.runtime.cuda.layout import Tiles

GROUP = 128
WIDTHS = (3, 4)
FEW_TOKENS = (1, 2, 4, 8, 16, 32)
MANY_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)
RING_BYTES = 1 << 30
# Where each call takes long, fewer are enough: still more than a cache holds.
RING_FOR_MANY = 4


class Moe(NamedTuple):
    """Experts of one shape, of which each token takes some."""

    count: int = 128
    rows: int = 768
    columns: int = 2048
    a_token: int = 8


class Plan(NamedTuple):
    """What is measured; tests have a smaller one."""

    shapes: Iterable[tuple[int, int]] = REAL_SHAPES
    moe: Moe = Moe()
    few: tuple[int, ...] = FEW_TOKENS
    many: tuple[int, ...] = MANY_TOKENS
    ring_bytes: int = RING_BYTES


def copy_rate(gpu: Machine, n_bytes: int) -> float:
    """Bytes read and written in a second by a copy from device to device."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=gpu.device)
    target = torch.empty_like(source)
    return 2 * n_bytes / gpu.seconds(lambda: target.copy_(source))


def layers(gpu: Machine, plan: Plan) -> Section:
    """Layers of all shapes and widths, for all numbers of tokens."""
    rate = copy_rate(gpu, plan.ring_bytes)
    table: list[Row] = []
    notes = [f"a copy reads and writes {rate / 1e9:,.0f} GB/s"]
    for shape in plan.shapes:
        dense = _dense_seconds(gpu, shape, plan)
        for bits in WIDTHS:
            rows = _of_shape(gpu, shape, bits, plan, rate, dense)
            table += rows
            table_says = gpu.on.crossing.most_tokens
            crossover = _crossover(rows)
            notes.append(
                f"{shape[0]}x{shape[1]}, {bits} bits: {crossover} (the table says {table_says})"
            )
    return Section("Layers, group 128, bfloat16", table, notes, [])


def _of_shape(
    gpu: Machine,
    shape: tuple[int, int],
    bits: int,
    plan: Plan,
    rate: float,
    dense: dict[int, float],
) -> list[Row]:
    rows, columns = shape
    ring = _ring(_random_tiles(gpu, (), shape, bits), plan.ring_bytes)
    n_bytes = sum(part.nbytes for part in ring[0])
    widths = GROUP, GROUP
    table: list[Row] = []
    for tokens in (*plan.few, *plan.many):
        is_many = tokens in plan.many
        chosen = ring[:RING_FOR_MANY] if is_many else ring
        x = _activations(gpu, tokens, columns)

        def whole(layer: Tiles, x: torch.Tensor = x) -> None:
            many.multiply_decoded(gpu.on, layer, x, rows, columns // GROUP, *widths)

        def integers(layer: Tiles, x: torch.Tensor = x) -> None:
            activations = calls.quantise(gpu.on, x, columns // GROUP, bits, *widths)
            calls.multiply(gpu.on, layer, activations, rows, GROUP, x.dtype)

        exact = seconds_a_call(gpu, chosen, integers)
        decoded = seconds_a_call(gpu, chosen, whole) if is_many else None
        ours = exact if tokens <= gpu.on.crossing.most_tokens or decoded is None else decoded
        first: Row = {"layer": f"{rows}x{columns}", "bits": bits, "tokens": tokens}
        beside = {"integers us": exact * 1e6, "decoded us": decoded and decoded * 1e6}
        table.append(first | _speed(ours, n_bytes, rate, dense[tokens]) | beside)
    return table


def experts(gpu: Machine, plan: Plan) -> Section:
    """The same for experts; torch's are one linear for each expert that occurs."""
    rate, moe = copy_rate(gpu, plan.ring_bytes), plan.moe
    dense = _dense_ring(gpu, (moe.count, moe.rows, moe.columns), plan.ring_bytes)
    table: list[Row] = []
    for bits in WIDTHS:
        one = _random_tiles(gpu, (moe.count,), (moe.rows, moe.columns), bits)
        ring = _ring(one, plan.ring_bytes)
        for tokens in (*plan.few, *plan.many):
            chosen = _choose(tokens, moe)
            used = len(chosen.unique())
            n_bytes = sum(part.nbytes for part in one) * used // moe.count
            times = _expert_seconds(gpu, ring, dense, chosen, moe)
            first: Row = {"bits": bits, "tokens": tokens, "experts read": used}
            table.append(first | _speed(times[0], n_bytes, rate, times[1]))
    title = f"{moe.count} experts {moe.rows}x{moe.columns}, {moe.a_token} a token, bfloat16"
    return Section(title, table, ["bf16: one linear of torch for each expert that is read"], [])


def _expert_seconds(
    gpu: Machine, ring: list[Tiles], dense: list[torch.Tensor], chosen: torch.Tensor, moe: Moe
) -> tuple[float, float]:
    """Of ours and of torch's. Each layer is called with others of its experts in turn, so that a
    round reads most of the ring: a cache holds the few that a token takes.
    """
    x = _activations(gpu, len(chosen), moe.columns)
    used, pairs_of = chosen.unique(return_counts=True)
    parts = list(zip(used.tolist(), x.split(pairs_of.tolist()), strict=True))
    turns = [turn * len(used) for turn in range(moe.count // len(used))]
    others = {turn: ((chosen + turn) % moe.count).to(gpu.device) for turn in turns}

    def ours(work: tuple[Tiles, int]) -> None:
        layers, turn = work
        linear.experts(gpu.on, x, layers, others[turn], moe.rows, GROUP, GROUP)

    def torchs(work: tuple[torch.Tensor, int]) -> None:
        weights, turn = work
        for expert, part in parts:
            F.linear(part, weights[(expert + turn) % moe.count])

    return (
        seconds_a_call(gpu, list(product(ring, turns)), ours),
        seconds_a_call(gpu, list(product(dense, turns)), torchs),
    )


def seconds_a_call(gpu: Machine, ring: list[Any], call: Callable[[Any], None]) -> float:
    """Of a graph that goes round the ring once."""

    def once_round() -> None:
        for layer in ring:
            call(layer)

    return gpu.seconds(gpu.capture(once_round).replay) / len(ring)


def _speed(ours: float, n_bytes: int, rate: float, dense: float) -> Row:
    return {
        "us": ours * 1e6,
        "GB/s": n_bytes / ours / 1e9,
        "% of copy": 100 * n_bytes / ours / rate,
        "bf16 us": dense * 1e6,
        "x bf16": dense / ours,
    }


def _crossover(rows: list[Row]) -> str:
    """From how many tokens on the decoded path is faster, whatever is measured beyond."""
    slower = [row for row in rows if row["decoded us"] is None or not _is_decoded_faster(row)]
    later = [row["tokens"] for row in rows[rows.index(slower[-1]) + 1 if slower else 0 :]]
    found = f"faster from {later[0]} tokens on" if later else "never faster"
    return f"decode and GEMM are {found}"


def _is_decoded_faster(row: Row) -> bool:
    return row["decoded us"] < row["integers us"]


def _dense_seconds(gpu: Machine, shape: tuple[int, int], plan: Plan) -> dict[int, float]:
    ring, found = _dense_ring(gpu, shape, plan.ring_bytes), {}
    for tokens in (*plan.few, *plan.many):
        x = _activations(gpu, tokens, shape[1])
        chosen = ring[:RING_FOR_MANY] if tokens in plan.many else ring
        found[tokens] = seconds_a_call(gpu, chosen, lambda weight, x=x: F.linear(x, weight))
    return found


def _dense_ring(gpu: Machine, shape: tuple[int, ...], n_bytes: int) -> list[torch.Tensor]:
    weight = torch.randn(shape, dtype=torch.bfloat16, device=gpu.device)
    return [weight.clone() for _ in range(_copies(weight.nbytes, n_bytes))]


def _ring(one: Tiles, n_bytes: int) -> list[Tiles]:
    count = _copies(sum(part.nbytes for part in one), n_bytes)
    return [Tiles(one.words.clone(), one.norms.clone()) for _ in range(count)]


def _copies(size: int, n_bytes: int) -> int:
    return max(2, -(-n_bytes // size))


def _random_tiles(gpu: Machine, lead: tuple[int, ...], shape: tuple[int, int], bits: int) -> Tiles:
    """Words and norms as `layout.repack` makes them: any words are codes."""
    rows, columns = shape
    tiles, units = -(-rows // layout.TILE), columns // layout.UNIT
    words = torch.empty(*lead, tiles, units, bits, 32, 4, dtype=torch.int32, device=gpu.device)
    norms = torch.rand(*lead, tiles, columns // GROUP, 8, 4, device=gpu.device)
    return Tiles(words.random_(), norms)


def _activations(gpu: Machine, tokens: int, columns: int) -> torch.Tensor:
    return torch.randn(tokens, columns, dtype=torch.bfloat16, device=gpu.device)


def _choose(tokens: int, moe: Moe) -> torch.Tensor:
    """Different experts for each token, drawn.  (tokens * a_token,) int64, on the processor"""
    rng = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, moe.count, generator=rng)
    return scores.topk(moe.a_token, dim=1).indices.flatten()
