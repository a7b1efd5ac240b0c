"""Sizes of what is measured: those of a 27B model, and small ones to rehearse with."""

from __future__ import annotations

from typing import NamedTuple

# Rows and columns. Those of Qwen3.6-27B's layers, and as vLLM joins them: up, down, gate and up,
# the inputs of Gated DeltaNet, queries, outputs, keys; then the head.
SHAPES = (
    (17408, 5120),
    (5120, 17408),
    (34816, 5120),
    (16384, 5120),
    (12288, 5120),
    (5120, 6144),
    (1024, 5120),
)
HEAD = (248320, 5120)


class Moe(NamedTuple):
    """Experts of one shape, of which each token takes some."""

    experts: int = 128
    rows: int = 768
    columns: int = 2048
    a_token: int = 8


class Model(NamedTuple):
    """A decoder of Transformers with random weights."""

    layers: int = 64
    hidden: int = 5120
    mlp: int = 17408
    heads: int = 24
    kv_heads: int = 4
    head_dim: int = 256
    vocabulary: int = HEAD[0]
    new_tokens: int = 32
    prompts: tuple[int, ...] = (512, 2048)


class Plan(NamedTuple):
    """few: tokens of one decoding step; many: around the crossing to decode and GEMM

    ring_bytes: the least size of a ring of layers, so that no cache holds what is called next
    cases: how many of the cases that compare results; None for all
    """

    shapes: tuple[tuple[int, int], ...] = SHAPES
    head: tuple[int, int] = HEAD
    few: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    many: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
    pieces: tuple[int, ...] = (1 << 24, 1 << 25, 1 << 26)
    ring_bytes: int = 1 << 30
    moe: Moe = Moe()
    moe_tokens: tuple[int, ...] = (1, 4, 16, 64, 512)
    model: Model = Model()
    cases: int | None = None


SMALL = Plan(
    shapes=((64, 256),),
    head=(32, 128),
    few=(1, 5),
    many=(2, 4),
    pieces=(1 << 13, 1 << 14),
    ring_bytes=1 << 12,
    moe=Moe(experts=4, rows=32, columns=128, a_token=2),
    moe_tokens=(1, 3),
    model=Model(1, 128, 128, 2, 1, 64, 96, new_tokens=2, prompts=(3,)),
    cases=3,
)
