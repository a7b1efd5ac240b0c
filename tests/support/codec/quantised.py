"""Stretches of quantised weights for the codec's tests, in every encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec.backend import Backend
from tq3.codec.quantised import SCALE_TYPE
from tq3.format.quantised import Encoding

WHOLE = 1 << 20  # a block as large as any tensor here

ENCODINGS = {
    "e4m3 tensor": Encoding("e4m3", 8, (WHOLE, WHOLE), "F32"),
    "e4m3 rows": Encoding("e4m3", 8, (1, WHOLE), "BF16"),
    "e4m3 128 x 128": Encoding("e4m3", 8, (128, 128), "F32"),
    "e4m3 32 x 32": Encoding("e4m3", 8, (32, 32), "F8_E8M0"),
    "e4m3 1 x 32": Encoding("e4m3", 8, (1, 32), "U8"),
    "e4m3 3 x 7": Encoding("e4m3", 8, (3, 7), "F16"),
    "e2m1": Encoding("e2m1", 4, (1, 32), "U8"),
    "nvfp4": Encoding("nvfp4", 4, (1, 16), "F8_E4M3"),
    "nvfp4 divided": Encoding("nvfp4", 4, (1, 16), "F8_E4M3", is_divided=True),
    **{f"int{bits}": Encoding("packed_int", bits, (1, 32), "BF16") for bits in range(3, 9)},
    "int4 zero": Encoding("packed_int", 4, (1, 128), "F16", has_zero_points=True),
    "int4 1 x 20": Encoding("packed_int", 4, (1, 20), "F16", has_zero_points=True),
    "int8 zero": Encoding("packed_int", 8, (1, 9), "F32", has_zero_points=True),
}


def stretch(
    encoding: Encoding, rows: int, columns: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[Any], dict[str, Any]]:
    """Any codes and scales of rows that begin anywhere in a block: codes, scales, all others."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, encoding.row_bytes(columns)), np.uint8)
    first = int(rng.integers(encoding.block[0]))
    lines = (first + np.arange(rows)) // encoding.block[0]
    grid = int(lines.max(initial=0)) + 1, encoding.grid(1, columns)[1]
    words = SCALE_TYPE[encoding.scale_dtype]
    scales: NDArray[Any] = np.frombuffer(
        rng.bytes(grid[0] * grid[1] * np.dtype(words).itemsize), words
    )
    others: dict[str, Any] = {"lines": lines}
    if encoding.has_zero_points:
        others["zero_points"] = rng.integers(0, 1 << encoding.bits, grid, np.uint8)
    if encoding.kind == "nvfp4":
        others["global_scale"] = rng.lognormal(0, 9, rows).astype(np.float32)
    return codes, scales.reshape(grid), others


def dequantize(
    backend: Backend,
    encoding: Encoding,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    columns: int,
    **others: Any,
) -> NDArray[np.float32]:
    """Weights of a backend, into an array that held rubbish."""
    out = np.full((len(codes), columns), -1e9, np.float32)
    backend.dequantize(encoding, codes, scales, out, **others)
    return out


def pack_to_int32(integers: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """compressed-tensors' function of this name (0.20, Apache-2.0), with numpy for torch."""
    rows, columns = integers.shape
    padded = np.zeros((rows, -(-columns // 32) * 32), np.int64)
    padded[:, :columns] = integers.astype(np.int64) + (1 << (bits - 1))
    groups = padded.reshape(-1, 32)
    words = np.zeros((len(groups), bits), np.int64)
    for i in range(32):
        word, offset = divmod(i * bits, 32)
        words[:, word] += (groups[:, i] << offset) & 0xFFFFFFFF
        if (over := offset + bits - 32) > 0:
            words[:, word + 1] += groups[:, i] >> (bits - over)
    return np.ascontiguousarray(
        words.reshape(rows, -1)[:, : -(-columns * bits // 32)].astype(np.uint32).view(np.int32)
    )
