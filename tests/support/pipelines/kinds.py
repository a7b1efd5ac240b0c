"""Small tensors of every kind, and what they become by the reference codec and numpy."""

from __future__ import annotations

import numpy as np

from support.factories import Tensor, Tensors, random_tensor, raw_tensor, spoiled, tensor
from tq3.codec import reference

COMPRESSED = {
    "whole.bf16.weight": random_tensor(6, 256, seed=1),
    "whole.f16.weight": random_tensor(6, 384, dtype="F16", seed=2),
    "whole.f32.mlp.w2.weight": random_tensor(5, 128, dtype="F32", seed=3),
    "padded.bf16.weight": random_tensor(5, 300, seed=4),
    "padded.f16.weight": random_tensor(130, 90, dtype="F16", seed=5),
    "padded.f32.mlp.w2.weight": random_tensor(3, 129, dtype="F32", seed=6),
    "one.row.weight": random_tensor(1, 128, seed=7),
    "long.rows.weight": random_tensor(2, 9000, seed=8),
    "zeros.weight": tensor(np.zeros((4, 128))),
    "one.hot.weight": spoiled(tensor(np.zeros((4, 128))), (2, 5), -3.5),
    "large.f32.mlp.w2.weight": tensor(np.full((3, 128), 1e18), "F32"),
    "tiny.f32.mlp.w2.weight": tensor(np.full((3, 128), 1e-40), "F32"),
    "layers.0.mlp.experts.gate_up_proj": random_tensor(3, 4, 256, seed=9),
    "layers.0.mlp.experts.down_proj": random_tensor(3, 4, 200, dtype="F16", seed=10),
    "layers.1.mlp.experts.0.up_proj.weight": random_tensor(128, 80, seed=11),
    "layers.1.mlp.experts.1.up_proj.weight": random_tensor(128, 80, seed=12),
}

# As F16 by default, but for those in F32, which are small and stay so.
FLOATS = {
    "lm_head.weight": random_tensor(8, 128, seed=13),
    "norm.weight": random_tensor(256, dtype="F32", seed=14),
    "a.bias": random_tensor(7, dtype="F16", seed=15),
    "number": tensor(np.float32(1.5)),
    "empty": Tensor("F32", (0, 4), b""),
    "unsuitable": random_tensor(4, 4, 4, 4, seed=16),
    "at.the.limit": tensor([65504.0, 65519.0, -65504.0, 1e-9], "F32"),
}

# Never touched.
OTHERS = {
    "ids": raw_tensor("I64", (5,), 64, seed=17),
    "mask": Tensor("BOOL", (3,), b"\1\0\1"),
    "double.weight": raw_tensor("F64", (2, 128), 64, seed=18),
    "fp8": raw_tensor("F8_E4M3", (256,), 8, seed=19),
    "bytes": raw_tensor("U8", (2, 128), 8, seed=20),
    "nan.double": Tensor("F64", (), np.float64("nan").tobytes()),
}

EVERY_KIND = {**COMPRESSED, **FLOATS, **OTHERS}


def encoded(
    name: str, source: Tensor, bits: int = 3, group: int = 128, scale: str = "search"
) -> dict[str, Tensor]:
    """The two tensors that the reference codec makes of one."""
    codes, norms = reference.encode(source.words, source.dtype, bits, group, scale)
    return {
        f"{name}.tq_packed": Tensor("U8", codes.shape, codes.tobytes()),
        f"{name}.tq_norms": Tensor("F32", norms.shape, norms.tobytes()),
    }


def as_float16(source: Tensor) -> Tensor:
    """By numpy's own rounding."""
    return Tensor("F16", source.shape, source.values.astype(np.float16).tobytes())


def kept(source: Tensor) -> Tensor:
    """What a small float becomes that is not compressed."""
    return source if source.dtype == "F32" else as_float16(source)


def decoded(
    source: Tensor, dtype: str, bits: int = 3, group: int = 128, scale: str = "search"
) -> Tensor:
    """There and back by the reference codec."""
    codes, norms = reference.encode(source.words, source.dtype, bits, group, scale)
    values = reference.decode(codes, norms, bits, group, source.shape[-1])
    words = reference.from_float32(np.ascontiguousarray(values), dtype)
    return Tensor(dtype, source.shape, words.tobytes())


def compressed_output(bits: int = 3, group: int = 128, scale: str = "search") -> dict[str, Tensor]:
    """What a compression of EVERY_KIND holds."""
    output: dict[str, Tensor] = {}
    for name, source in COMPRESSED.items():
        output |= encoded(name, source, bits, group, scale)
    return output | {name: kept(source) for name, source in FLOATS.items()} | OTHERS


def assert_same_tensors(found: Tensors, expected: Tensors) -> None:
    """Names, types, shapes and bytes; a difference is told by name."""
    assert sorted(found) == sorted(expected)
    different = [name for name, one in expected.items() if found[name] != one]
    assert different == []
