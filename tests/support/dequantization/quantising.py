"""Given weights in the layouts in which models are published, and the numbers that remain of them.

Nothing here uses tq3: ml_dtypes rounds to the small types.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from support.dequantization.quantised import Floats, Quantised, words
from support.factories import Tensor, tensor

# Of a stem and the values of its weight.
Quantiser = Callable[[str, Floats], Quantised]
Bytes = NDArray[np.uint8]


def fp8(block: tuple[int, int], scale: str = "F32", scales: str = ".weight_scale_inv") -> Quantiser:
    """FP8 with a scale for each block, the last ones cut off."""

    def quantise(stem: str, values: Floats) -> Quantised:
        stored, wide = _stored(
            _largest(values, block) / np.float32(448), scale, block, values.shape
        )
        codes = (values / wide).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        made = Tensor("F8_E4M3", values.shape, codes.tobytes())
        decoded = codes.astype(np.float32) * wide
        return Quantised({f"{stem}.weight": made, stem + scales: stored}, f"{stem}.weight", decoded)

    return quantise


def fp4_of_deepseek(stem: str, values: Floats) -> Quantised:
    """Pairs of FP4 in I8, and exponents."""
    packed, scale, decoded = _mxfp4(values, "F8_E8M0")
    made = Tensor("I8", packed.shape, packed.tobytes())
    return Quantised({f"{stem}.weight": made, f"{stem}.scale": scale}, f"{stem}.weight", decoded)


def fp4_of_gpt_oss(stem: str, values: Floats) -> Quantised:
    """Blocks of 16 bytes, and exponents.  (experts, rows, columns)"""
    packed, scale, decoded = _mxfp4(values, "U8")
    shape = (*values.shape[:-1], values.shape[-1] // 32, 16)
    made = Tensor("U8", shape, packed.tobytes())
    return Quantised({f"{stem}_blocks": made, f"{stem}_scales": scale}, stem, decoded)


def nvfp4(*, is_divided: bool) -> Quantiser:
    """compressed-tensors divides by its global scale, ModelOpt multiplies by it."""
    codes_end, scale_end, input_end = (
        (".weight_packed", ".weight_global_scale", ".input_global_scale")
        if is_divided
        else (".weight", ".weight_scale_2", ".input_scale")
    )

    def quantise(stem: str, values: Floats) -> Quantised:
        factor = np.float32(np.abs(values).max() / (6 * 448))
        second = np.float32(1) / factor if is_divided else factor
        block = (1, 16)
        scales = (_largest(values, block) / 6 / factor).astype(ml_dtypes.float8_e4m3fn)
        wide = _spread(scales.astype(np.float32), block, values.shape)
        packed, rounded = _pairs(values / np.maximum(wide * factor, 1e-30))
        product = rounded * wide
        stored = {
            stem + codes_end: Tensor("U8", packed.shape, packed.tobytes()),
            f"{stem}.weight_scale": Tensor("F8_E4M3", scales.shape, scales.tobytes()),
            stem + scale_end: tensor([second] if is_divided else second, "F32"),
            stem + input_end: tensor([1.5] if is_divided else 1.5, "F32"),
        }
        decoded = product / second if is_divided else product * second
        return Quantised(stored, f"{stem}.weight", decoded)

    return quantise


def int4(stem: str, values: Floats) -> Quantised:
    """Groups of 32 that compressed-tensors packs, as Kimi K2's experts are."""
    block = (1, 32)
    stored, wide = _stored(_largest(values, block) / np.float32(7.5), "BF16", block, values.shape)
    codes = np.rint(values / wide).clip(-8, 7)
    tensors = {
        f"{stem}.weight_packed": words(codes.astype(np.int64) + 8, 4),
        f"{stem}.weight_scale": stored,
        f"{stem}.weight_shape": Tensor("I64", (2,), np.array(values.shape, "<i8").tobytes()),
    }
    return Quantised(tensors, f"{stem}.weight", codes.astype(np.float32) * wide)


def _mxfp4(values: Floats, dtype: str) -> tuple[Bytes, Tensor, Floats]:
    stored, wide = _stored(_largest(values, (1, 32)) / np.float32(6), dtype, (1, 32), values.shape)
    packed, rounded = _pairs(values / wide)
    return packed, stored, rounded * wide


def _pairs(values: Floats) -> tuple[Bytes, Floats]:
    """The nearest FP4, two in a byte, the first one low; and what they are."""
    rounded = values.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
    codes = rounded.view(np.uint8)
    packed: Bytes = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed, rounded.astype(np.float32)


def _largest(values: Floats, block: tuple[int, int]) -> Floats:
    """Of each block; never zero.  (..., rows, columns) -> (..., blocks down, blocks across)"""
    *stack, rows, columns = values.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    padded = np.zeros((*stack, down * block[0], across * block[1]), np.float32)
    padded[..., :rows, :columns] = np.abs(values)
    parts = padded.reshape(*stack, down, block[0], across, block[1])
    found: Floats = np.maximum(parts.max((-3, -1)), np.float32(2.0**-40))
    return found


def _stored(
    scales: Floats, dtype: str, block: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Tensor, Floats]:
    """Scales in their type, and that of each weight; powers of two are rounded up."""
    if dtype in ("U8", "F8_E8M0"):
        exponents = np.ceil(np.log2(scales))
        raw = (exponents + 127).astype(np.uint8)
        stored = Tensor(dtype, raw.shape, raw.tobytes())
        return stored, _spread(np.exp2(exponents).astype(np.float32), block, shape)
    stored = tensor(scales, dtype)
    return stored, _spread(stored.values, block, shape)


def _spread(scales: Floats, block: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    wide: Floats = scales.repeat(block[0], -2).repeat(block[1], -1)
    return wide[..., : shape[-2], : shape[-1]]
