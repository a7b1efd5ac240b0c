"""Weights in every layout that can be decoded, and the numbers that they stand for.

Nothing here uses tq3: codes are drawn, and decoded by tables as docs/sources.md describes them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from support.factories import Tensor, random_tensor, tensor

Floats = NDArray[np.float32]
Shape = tuple[int, ...]

_BYTE = np.arange(256)
_EXPONENT, _MANTISSA = (_BYTE >> 3 & 15).astype(float), _BYTE & 7
_SIZES = np.where(
    _EXPONENT == 0, _MANTISSA / 512, (8 + _MANTISSA) / 8 * 2.0 ** (_EXPONENT - 7)
) * np.where(_BYTE & 127 == 127, np.nan, 1)
E4M3: Floats = np.where(_BYTE > 127, -_SIZES, _SIZES).astype(np.float32)
E2M1: Floats = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class Quantised(NamedTuple):
    """What lies on the disk, in its order, and the weight that it is."""

    tensors: dict[str, Tensor]
    name: str
    values: Floats


def fp8(
    stem: str,
    shape: Shape,
    block: tuple[int, int] = (128, 128),
    scale: str = "F32",
    codes: str = ".weight",
    scales: str = ".weight_scale_inv",
    grid: Shape | None = None,
) -> Quantised:
    """FP8 with a grid of scales, of the shape `grid` where that is an unusual one."""
    random = _random(stem)
    raw = random.integers(0, 127, shape) | random.integers(0, 2, shape) << 7
    stored, wide = _scales(random, shape, block, scale, -12, grid)
    tensors = {
        stem + codes: Tensor("F8_E4M3", shape, raw.astype(np.uint8).tobytes()),
        stem + scales: stored,
    }
    return Quantised(tensors, stem + codes, E4M3[raw] * wide)


def fp4(
    stem: str,
    shape: Shape,
    codes: str = ".weight",
    scales: str = ".scale",
    dtype: str = "I8",
    scale: str = "F8_E8M0",
) -> Quantised:
    """Pairs of FP4 with exponents for 32 each; gpt-oss's blocks where `codes` is "_blocks"."""
    packed, values, random = _pairs(stem, shape)
    stored, wide = _scales(random, shape, (1, 32), scale, -8)
    paired: Shape = (*shape[:-1], shape[-1] // 2)
    if codes == "_blocks":
        paired = (*shape[:-1], shape[-1] // 32, 16)
    tensors = {stem + codes: Tensor(dtype, paired, packed), stem + scales: stored}
    name = stem if codes == "_blocks" else f"{stem}.weight"
    return Quantised(tensors, name, values * wide)


def nvfp4(stem: str, shape: Shape, *, is_divided: bool = False) -> Quantised:
    """ModelOpt's, or that of compressed-tensors, which divides by its global scale."""
    packed, values, random = _pairs(stem, shape)
    grid = (*shape[:-1], shape[-1] // 16)
    raw = random.integers(40, 90, grid).astype(np.uint8)
    codes, second = (
        (".weight_packed", ".weight_global_scale") if is_divided else (".weight", ".weight_scale_2")
    )
    factor = np.float32(1234.5 if is_divided else 0.00321)
    tensors = {
        stem + codes: Tensor("U8", (*shape[:-1], shape[-1] // 2), packed),
        f"{stem}.weight_scale": Tensor("F8_E4M3", grid, raw.tobytes()),
        stem + second: tensor([factor], "F32"),
        f"{stem}.input_scale": tensor(1.5, "F32"),
    }
    scaled = values * E4M3[raw].repeat(16, -1)
    return Quantised(tensors, f"{stem}.weight", scaled / factor if is_divided else scaled * factor)


def packed_int(
    stem: str, shape: Shape, bits: int = 4, group: int = 32, *, zero_points: bool = False
) -> Quantised:
    """Whole numbers in a stream of bits, as compressed-tensors packs them."""
    random = _random(stem)
    codes = random.integers(0, 1 << bits, shape)
    stored, wide = _scales(random, shape, (1, group), "BF16", -6)
    middles = np.full((shape[0], shape[1] // group), 1 << bits - 1)
    tensors = {
        f"{stem}.weight_packed": words(codes, bits),
        f"{stem}.weight_scale": stored,
        f"{stem}.weight_shape": Tensor("I64", (2,), np.array(shape, "<i8").tobytes()),
    }
    if zero_points:
        middles = random.integers(0, 1 << bits, middles.shape)
        turned = words(middles.T, bits)
        points = np.frombuffer(turned.data, "<i4").reshape(turned.shape).T
        tensors[f"{stem}.weight_zero_point"] = Tensor("I32", points.shape, points.tobytes())
    numbers = (codes - middles.repeat(group, 1)).astype(np.float32)
    return Quantised(tensors, f"{stem}.weight", numbers * wide)


def signed_bytes(
    stem: str, shape: Shape, block: tuple[int, int], *, zero_points: bool = False, **scale: Any
) -> Quantised:
    """Whole numbers of 8 bits in a byte each, as compressed-tensors' int-quantized has them."""
    random = _random(stem)
    codes = random.integers(-128, 128, shape)
    stored, wide = _scales(random, shape, block, "BF16", -10, **scale)
    tensors = {
        f"{stem}.weight": Tensor("I8", shape, codes.astype(np.int8).tobytes()),
        f"{stem}.weight_scale": stored,
    }
    if zero_points:
        points = random.integers(-128, 128, stored.shape)
        tensors[f"{stem}.weight_zero_point"] = Tensor(
            "I8", stored.shape, points.astype(np.int8).tobytes()
        )
        codes = codes - points.repeat(block[0], 0)[: shape[0]].repeat(block[1], 1)[:, : shape[1]]
    return Quantised(tensors, f"{stem}.weight", codes.astype(np.float32) * wide)


def plain(some: Sequence[Quantised]) -> dict[str, Tensor]:
    """The same weights as F32."""
    return {each.name: tensor(each.values, "F32") for each in some}


def around(some: Sequence[Quantised], **more: Tensor) -> dict[str, Tensor]:
    """A model of these weights and a few ordinary ones, all that a host stores."""
    tensors = {"model.embed_tokens.weight": random_tensor(32, 128, seed=1)}
    for each in some:
        tensors |= each.tensors
    return {**tensors, **more, "model.norm.weight": random_tensor(128, seed=2)}


def _random(stem: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(stem.encode()))


def _pairs(stem: str, shape: Shape) -> tuple[bytes, Floats, np.random.Generator]:
    random = _random(stem)
    codes = random.integers(0, 16, shape)
    packed = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed.tobytes(), E2M1[codes], random


def _scales(
    random: np.random.Generator,
    shape: Shape,
    block: tuple[int, int],
    dtype: str,
    exponent: int,
    stored_shape: Shape | None = None,
) -> tuple[Tensor, Floats]:
    """Scales as stored, and that of each weight."""
    rows, columns = shape[-2:]
    grid = (*shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    if dtype in ("U8", "F8_E8M0"):
        raw = random.integers(exponent, exponent + 4, grid) + 127
        stored = Tensor(dtype, grid, raw.astype(np.uint8).tobytes())
        values = np.exp2(raw - 127.0).astype(np.float32)
    else:
        stored = tensor(random.uniform(1, 2, grid) * 2.0**exponent, dtype)
        values = stored.values
    wide: Any = values.repeat(block[0], -2)[..., :rows, :].repeat(block[1], -1)[..., :columns]
    if stored_shape is not None:
        assert prod(stored_shape) == prod(grid)
        stored = stored._replace(shape=stored_shape)
    return stored, wide


def words(codes: NDArray[np.int64], bits: int) -> Tensor:
    """(rows, n) -> I32 (rows, ceil(n * bits / 32))"""
    planes = (codes[..., None] >> np.arange(bits) & 1).reshape(len(codes), -1)
    padded = np.zeros((len(codes), -(-planes.shape[1] // 32) * 32), np.uint8)
    padded[:, : planes.shape[1]] = planes
    data = np.packbits(padded, axis=1, bitorder="little")
    return Tensor("I32", (len(codes), data.shape[1] // 4), data.tobytes())
