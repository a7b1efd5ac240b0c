"""Odd but valid: every command succeeds, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.factories import (
    Tensor,
    Tensors,
    file_bytes,
    random_tensor,
    raw_tensor,
    read_tensors,
    spoiled,
    tensor,
    tiny_checkpoint,
)
from support.pipelines.kinds import assert_same_tensors, decoded, encoded, kept

import tq3


def there_and_back(path: Path, source: Path) -> dict[str, Tensor]:
    """Preview, compress, inspect and restore: names and shapes are the source's all the way."""
    shapes = {name: one.shape for name, one in read_tensors(source).items()}
    tq3.compress(source, path / "out")
    for folder in (source, path / "out"):
        described = tq3.inspect(folder)
        assert json.dumps(described.to_dict())
        assert {line.name: line.shape for line in described.tensors} == shapes
    tq3.restore(path / "out", path / "back")
    back = read_tensors(path / "back")
    assert {name: one.shape for name, one in back.items()} == shapes
    return back


ODD = {
    "empty.weight": Tensor("BF16", (0, 128), b""),
    "no.columns.weight": Tensor("F32", (128, 0), b""),
    "layers.0.mlp.experts.no.experts": Tensor("BF16", (0, 128, 128), b""),
    "number.weight": random_tensor(),
    "number.f64": raw_tensor("F64", (), 64),
    "eight.dimensions.weight": random_tensor(1, 1, 2, 1, 1, 2, 1, 1),
    "one.group.weight": random_tensor(128, 1),
    "one.row.weight": random_tensor(1, 128),
    "one.short.row.weight": random_tensor(1, 129),
}
NAMES = ["", " ", ".", "..", "a b", "größe", "重み", "🦙", 'quo"te', "back\\slash", "new\nline"]
NAMES += ["/etc/passwd", "../../x", "C:\\x", "x\0y", "\u202eright to left", "A", "a", "a.tq_pack"]
NAMES += ["__metadata", "tq_config.json", "x" * 5000, "%s{}[red]", "-", "--keep", "*", "a.0.1.-2"]


def test_odd_shapes_go_there_and_back(tmp_path):
    back = there_and_back(tmp_path, tiny_checkpoint(tmp_path / "in", ODD))
    for name in ("one.group.weight", "one.row.weight", "one.short.row.weight"):
        assert back[name] == decoded(ODD[name], "BF16")


def test_odd_names_go_there_and_back(tmp_path):
    tensors = {name: raw_tensor("U8", (3,), 8, seed=i) for i, name in enumerate(NAMES)}
    tensors |= {f"{name}.weight": random_tensor(2, 128, seed=i) for i, name in enumerate(NAMES)}
    back = there_and_back(tmp_path, tiny_checkpoint(tmp_path / "in", tensors))
    assert {name: back[name] for name in NAMES} == {name: tensors[name] for name in NAMES}


@pytest.mark.parametrize("spacing", [b"", b"       ", b"\n\t\r "])
def test_a_header_without_metadata_in_any_order_and_spacing(tmp_path, spacing):
    one, other = random_tensor(2, 128), raw_tensor("U8", (5,), 8)
    entries = {
        "last": {"dtype": "U8", "shape": [5], "data_offsets": [512, 517]},
        "first.weight": {"dtype": "BF16", "shape": [2, 128], "data_offsets": [0, 512]},
    }
    text = json.dumps(entries, indent=1).encode() + spacing
    source = tmp_path / "in"
    source.mkdir()
    (source / "model.safetensors").write_bytes(file_bytes(text, one.data + other.data))
    back = there_and_back(tmp_path, source)
    assert back == {"last": other, "first.weight": decoded(one, "BF16")}


@pytest.mark.slow
def test_twenty_thousand_tensors(tmp_path):
    names = [f"layers.{i // 8}.experts.{i % 8}.bias" for i in range(20_000)]
    tensors = {name: raw_tensor("F16", (1,), 16, seed=7) for name in names}
    tensors["a.weight"] = random_tensor(1, 128)
    back = there_and_back(tmp_path, tiny_checkpoint(tmp_path / "in", tensors))
    assert len(back) == 20_001


HARD: Tensors = {
    "denormal.bf16.weight": Tensor(
        "BF16", (2, 128), (np.arange(256, dtype=np.uint16) % 128).tobytes()
    ),
    "denormal.f16.weight": Tensor("F16", (2, 128), (np.arange(256, dtype=np.uint16) * 3).tobytes()),
    "denormal.f32.mlp.w2.weight": Tensor(
        "F32", (2, 128), (np.arange(256, dtype=np.uint32) * 999).tobytes()
    ),
    "minus.zero.weight": tensor(np.full((2, 128), -0.0)),
    "constant.f16.weight": tensor(np.full((2, 128), 65504.0), "F16"),
    "constant.bf16.weight": tensor(np.full((2, 130), -1e-3)),
    "alternating.mlp.w2.weight": tensor(np.resize([1.0, -1.0], (2, 128)), "F32"),
    "one.huge.bf16.weight": spoiled(random_tensor(2, 128), (1, 7), 1e18),
    "one.huge.f16.weight": spoiled(random_tensor(2, 128, dtype="F16"), (0, 0), -65504.0),
    "one.huge.f32.mlp.w2.weight": spoiled(random_tensor(2, 300, dtype="F32"), (1, 299), -1e18),
    "experts.one.huge": spoiled(random_tensor(2, 2, 128), (1, 1, 127), 1e18),
}
KEPT = {
    "denormal.f32.bias": Tensor("F32", (2,), np.array([1, 2**22], np.uint32).tobytes()),
    "limit.bias": tensor([65519.0, -65519.0, 2.0**-24, 2.0**-26, -0.0], "F32"),
}


def test_denormals_zeros_constants_and_huge_values_are_stored_as_the_reference_says(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {**HARD, **KEPT})
    back = there_and_back(tmp_path, source)
    expected = {name: kept(one) for name, one in KEPT.items()}
    for name, one in HARD.items():
        expected |= encoded(name, one)
    assert_same_tensors(read_tensors(tmp_path / "out"), expected)
    assert {name: back[name] for name in HARD} == {n: decoded(HARD[n], "BF16") for n in HARD}
    assert all(np.isfinite(one.values).all() for one in back.values())
