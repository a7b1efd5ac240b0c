"""Virtual tensors hold the numbers that a quantised weight stands for, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dequantization.quantised import (
    Quantised,
    around,
    fp4,
    fp8,
    nvfp4,
    packed_int,
    signed_bytes,
)
from support.factories import tiny_checkpoint

from tq3.dequantization import source as dequantization
from tq3.dequantization.source import open_original
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import Source
from tq3.storage.local import LocalFiles

MLP = "model.layers.0.mlp"
EXPERTS = "model.layers.0.mlp.experts"


def integers(bits: int, group: int, *, symmetric: bool = True) -> dict[str, Any]:
    """What compressed-tensors writes into config.json."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group"}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**weights, "group_size": group}}}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return {"quantization_config": {**method, "config_groups": groups}}


def int_quantized(**weights: Any) -> dict[str, Any]:
    """What compressed-tensors writes of integers of 8 bits that it does not pack."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}
    method = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    return {"quantization_config": {**method, "config_groups": {"group_0": group}}}


def blocks(size: list[int] | None) -> dict[str, Any]:
    """What DeepSeek writes into config.json."""
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": size}}


UP = f"{MLP}.up_proj"
LAYOUTS: dict[str, tuple[Quantised, dict[str, Any]]] = {
    **{
        f"fp8 with scales in {dtype}": (fp8(UP, (256, 384), scale=dtype), blocks([128, 128]))
        for dtype in ("F32", "BF16", "F16", "F8_E8M0", "U8")
    },
    "a last block cut off on both sides": (fp8(UP, (192, 200)), blocks([128, 128])),
    "blocks of 32": (fp8(UP, (130, 72), (32, 32), "F8_E8M0", scales=".scale"), blocks([32, 32])),
    "blocks without config": (fp8(UP, (192, 200)), {}),
    "exponents without config": (fp8(UP, (192, 200), (1, 32), "U8"), {}),
    "0-d": (fp8(UP, (192, 200), (192, 200), grid=()), blocks(None)),
    "[1]": (fp8(UP, (192, 200), (192, 200), scales=".qscale_weight", grid=(1,)), {}),
    "blocks of ModelOpt": (
        fp8(UP, (192, 200), scales=".weight_scale", grid=(2, 1, 2, 1)),
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}},
    ),
    "a row": (fp8(UP, (192, 200), (1, 200), "BF16", scales=".weight_scale"), {}),
    "a row, 1-D": (fp8(UP, (192, 200), (1, 200), scales=".weight_scale", grid=(192,)), {}),
    "experts": (
        fp8(f"{EXPERTS}.up_proj", (3, 192, 200), codes="", scales="_scale_inv"),
        blocks([128, 128]),
    ),
    "a scale for each expert": (
        fp8(f"{EXPERTS}.up_proj", (3, 192, 200), (192, 200), codes="", scales="_scale", grid=(3,)),
        {},
    ),
    "pairs of I8": (fp4(UP, (130, 192)), blocks([128, 128])),
    "pairs of U8": (fp4(UP, (130, 192), ".weight_packed", ".weight_scale", "U8", "U8"), {}),
    "gpt-oss": (
        fp4(f"{EXPERTS}.gate_up_proj", (3, 130, 96), "_blocks", "_scales", "U8", "U8"),
        {"quantization_config": {"quant_method": "mxfp4"}},
    ),
    "nvfp4 of ModelOpt": (nvfp4(UP, (130, 96)), {}),
    "nvfp4 of compressed-tensors": (nvfp4(UP, (130, 96), is_divided=True), {}),
    **{f"int{bits}": (packed_int(UP, (130, 192), bits), integers(bits, 32)) for bits in (3, 4, 8)},
    "bytes, a scale for a row": (
        signed_bytes(UP, (131, 200), (1, 200)),
        int_quantized(strategy="channel"),
    ),
    "bytes, one scale": (
        signed_bytes(UP, (131, 200), (131, 200), stored_shape=(1,)),
        int_quantized(strategy="tensor"),
    ),
    "bytes, groups and zero points": (
        signed_bytes(UP, (131, 192), (1, 32), zero_points=True),
        int_quantized(strategy="group", group_size=32, symmetric=False),
    ),
    "zero points": (
        packed_int(UP, (131, 192), zero_points=True),
        integers(4, 32, symmetric=False),
    ),
}


def opened(path: Path, some: Quantised, config: dict[str, Any]) -> tuple[Source, Checkpoint]:
    return open_original(LocalFiles(tiny_checkpoint(path, around([some]), 3, config)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_virtual_tensor_is_the_weight_that_is_meant(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(dequantization, "_PIECE_BYTES", 40)
    some, config = LAYOUTS[layout]
    files, checkpoint = opened(tmp_path / "source", some, config)
    names = [each.info.name for each in checkpoint.tensors]
    assert sorted(names) == sorted([some.name, "model.embed_tokens.weight", "model.norm.weight"])
    found = checkpoint.tensors[names.index(some.name)]
    assert found.info.shape == some.values.shape
    assert found.nominal.dtype == "BF16"
    whole = np.frombuffer(files.read(found.file, found.offset, found.info.n_bytes), np.float32)
    np.testing.assert_array_equal(whole.reshape(some.values.shape), some.values)
    for first, count in ((0, 1), (1, 700), (399, 2), (whole.size - 5, 5)):
        part = files.read(found.file, found.offset + 4 * first, 4 * count)
        np.testing.assert_array_equal(np.frombuffer(part, "<f4"), whole[first : first + count])


def test_scales_are_read_once_and_kept_as_far_as_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(dequantization, "_PIECE_BYTES", 400)
    monkeypatch.setattr(dequantization, "KEPT_BYTES", 1000)
    files, checkpoint = opened(tmp_path / "source", fp4(UP, (130, 192)), {})
    reads: list[tuple[int, int]] = []
    read_into = LocalFiles.read_into

    def noting(self: LocalFiles, name: str, offset: int, buffer: memoryview) -> None:
        reads.append((offset, len(buffer)))
        read_into(self, name, offset, buffer)

    monkeypatch.setattr(LocalFiles, "read_into", noting)
    (found,) = (each for each in checkpoint.tensors if each.pieces)
    row = 4 * 192
    for number in range(130):
        files.read(found.file, found.offset + number * row, row)
    scales = [length for _, length in reads if length != 96]
    assert scales == [396, 384]
    files.read(found.file, found.offset, row)
    assert len(reads) == 130 + 2 + 1  # still there
