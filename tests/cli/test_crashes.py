"""Killed at any moment, a run is continued by the same command and writes the right bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.crash_child import STEPS
from support.crashes import Case, crash
from support.dequantization.quantised import around, fp4, fp8
from support.factories import (
    contents,
    expert_tensors,
    mixed_tensors,
    tiny_checkpoint,
    too_large,
    with_nan,
)

import tq3

SHARDS = ("--max-shard-size", "8000")


def one_shard(path: Path) -> Path:
    """Every kind of tensor, and files beside them."""
    tiny_checkpoint(path, mixed_tensors())
    for name in ("tokenizer.json", "notes"):
        (path / name).write_text("{}")
    return path


def with_findings(path: Path) -> Path:
    """Values that don't fit float16 in two of four shards."""
    return tiny_checkpoint(path, too_large(mixed_tensors(), 0, 2), shards=3)


def with_joined_findings(path: Path) -> Path:
    """Values that change the plan of shards which are written already."""
    tensors = expert_tensors()
    for name in ("layers.0.mlp.experts.3.down_proj", "layers.1.mlp.experts.2.up_proj"):
        tensors = with_nan(tensors, f"model.{name}.weight")
    return tiny_checkpoint(path, tensors, shards=3)


def compressed(path: Path) -> Path:
    """What is restored."""
    one_shard(path.with_name("first"))
    tq3.compress(path.with_name("first"), path)
    return path


def older(out: Path) -> None:
    """A checkpoint of the same names, sizes and headers, and of other values."""
    tq3.compress(out.with_name("in"), out, max_shard_size=8000)
    for name, data in contents(out).items():
        if name.endswith(".safetensors"):
            (out / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def quantised(path: Path) -> Path:
    """FP8 and FP4, with scales in other shards than their weights."""
    stem = "model.layers.0.mlp"
    some = [
        fp8(f"{stem}.up_proj", (96, 256), (32, 128)),
        fp4(f"{stem}.experts.0.up_proj", (66, 256)),
        fp8(f"{stem}.gate_proj", (70, 200), (32, 128)),
    ]
    method = {"quant_method": "fp8", "weight_block_size": [32, 128]}
    return tiny_checkpoint(path, around(some), 3, {"quantization_config": method})


CASES = [
    Case("one shard", one_shard),
    Case("many shards", one_shard, SHARDS),
    Case("findings", with_findings, (*SHARDS, "--workers", "1")),
    Case("joined", with_joined_findings, (*SHARDS, "--nonfinite", "keep")),
    Case("quantised", quantised, SHARDS),
    Case("overwritten", one_shard, SHARDS, older=older),
    Case("restored", compressed, ("--max-shard-size", "60000"), command="restore"),
]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_right_bytes(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    figures = crash(CASES, tmp_path, kills=28, seed=seed)
    print(figures)
    assert figures.kills >= 28
    assert figures.completed >= len(CASES)
    # Each is as likely as another: by chance some may be missed.
    assert len(STEPS.keys() & figures.phases.keys()) >= 5
