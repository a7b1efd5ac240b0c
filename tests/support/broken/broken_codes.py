"""Quantised sources that could be decoded, but for one fault. Their headers are sound."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from support.broken.cases import Case
from support.factories import Tensor, raw_tensor, safetensors_bytes

_WEIGHTS, _CONFIG, _INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
_STEM = "model.layers.0.mlp.up_proj"
_READERS = ("compress", "inspect")
_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
Config = dict[str, Any]


def codes(
    words: str,
    tensors: dict[str, Tensor],
    said: Config | None = None,
    *,
    names: str = _WEIGHTS,
    commands: tuple[str, ...] = _READERS,
) -> Case:
    """Tensors of one stem under a config.json that tells of this quantisation."""
    stored = {_STEM + end: one for end, one in tensors.items()}
    files = {_WEIGHTS: safetensors_bytes(stored), _CONFIG: json.dumps(said or {}).encode()}
    return Case(files, names, words, commands)


def values(words: str, tensors: dict[str, Tensor], said: Config | None = None) -> Case:
    """A fault that is seen where weights are read, and not before."""
    return codes(words, tensors, said, commands=("compress",))


def sharded(words: str, names: str, **shards: bytes) -> Case:
    """Codes in one shard, their scales in another one."""
    weight_map = {f"{_STEM}.weight": "1.safetensors", f"{_STEM}.weight_scale_inv": "2.safetensors"}
    files = {_INDEX: json.dumps({"weight_map": weight_map}).encode(), _CONFIG: b"{}", **shards}
    return Case(files, names, words, _READERS)


def quantization(method: str, **keys: Any) -> Config:
    return {"quantization_config": {"quant_method": method, **keys}}


def raw(dtype: str, *shape: int) -> Tensor:
    """Some bytes, whatever they stand for."""
    bits = {"I32": 32, "F32": 32, "BF16": 16, "I64": 64}.get(dtype, 8)
    return raw_tensor(dtype, shape, bits)


def ones(dtype: str, byte: int, *shape: int, last: int | None = None) -> Tensor:
    """Bytes that are all alike, or all but the last one."""
    data = bytearray([byte]) * int(np.prod(shape))
    if last is not None:
        data[-1] = last
    return Tensor(dtype, shape, bytes(data))


def f32(*numbers: float) -> Tensor:
    return Tensor("F32", (1, len(numbers)), np.array(numbers, "<f4").tobytes())


def of_integers(**weights: Any) -> Config:
    """What compressed-tensors says of packed integers."""
    weights = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32} | weights
    return quantization("compressed-tensors", config_groups={"a": {"weights": weights}})


_FP8 = ones("F8_E4M3", 0x38, 2, 256)
_PAIRS = ones("I8", 0x22, 2, 128)
_PACKED = {".weight_packed": raw("I32", 2, 8), ".weight_scale": raw("BF16", 2, 2)}
_SHARD = safetensors_bytes({f"{_STEM}.weight": _FP8})
_SCALES = safetensors_bytes({f"{_STEM}.weight_scale_inv": f32(1, 1)})
_OTHER = {".weight": _FP8, ".weight_scale_inv": f32(1, 1)}

SCALES = {
    "codes/without-their-scale": codes(
        f"tensor '{_STEM}.gate.weight': 8-bit floats without a scale (found F8_E4M3 [2, "
        "8], expected F8_E4M3 with a scale beside it, such as weight_scale_inv); fetch "
        "the checkpoint again: without its scale a weight can't be known",
        {**_OTHER, ".gate.weight": raw("F8_E4M3", 2, 8)},
    ),
    "codes/scale-without-weight": codes(
        f"tensor '{_STEM}.gate.weight_scale_inv': a scale without its weight (found no "
        f"tensor '{_STEM}.gate.weight', expected both, or none of them); fetch the "
        "checkpoint again, or take the scale out of it",
        {**_OTHER, ".gate.weight_scale_inv": f32(1)},
    ),
    "codes/scale-of-another-type": codes(
        "the source is already quantised (found block-wise FP8 (weight_scale_inv), for "
        f"example '{_STEM}.weight_scale_inv', expected BF16, F16 or F32 weights); compress"
        " its BF16 checkpoint: the original, or this one decoded by its makers' tool",
        {".weight": _FP8, ".weight_scale_inv": raw("I32", 1, 2)},
    ),
    "codes/scale-beside-floats": codes(
        f"tensor '{_STEM}.gate.weight_scale_inv': a scale, but its weight is not quantised"
        f" (found BF16 [2, 8] in '{_STEM}.gate.weight', expected both, or none of them); "
        "fetch the checkpoint again, or take the scale out of it",
        {**_OTHER, ".gate.weight": raw("BF16", 2, 8), ".gate.weight_scale_inv": f32(1)},
    ),
    "codes/a-scale-too-many": codes(
        f"tensor '{_STEM}.weight_scale_inv': its shape does not fit: the weight has shape "
        "[2, 256] (found F32 [1, 3], expected [1, 2] by weight_block_size [128, 128] of "
        "config.json); get config.json and weights from one revision",
        {".weight": _FP8, ".weight_scale_inv": f32(1, 1, 1)},
        {"quantization_config": _BLOCKS},
    ),
    "codes/exponents-of-16": codes(
        f"tensor '{_STEM}.scale': its shape does not fit: the weight has shape [2, 256] "
        "(found F8_E8M0 [2, 16], expected [2, 8] by 32 codes share a scale in MXFP4); get"
        " config.json and weights from one revision",
        {".weight": _PAIRS, ".scale": raw("F8_E8M0", 2, 16)},
    ),
    "codes/nvfp4-of-32": codes(
        f"tensor '{_STEM}.weight_scale': its shape does not fit: the weight has shape [2, "
        "256] (found F8_E4M3 [2, 8], expected [2, 16] by 16 codes share a scale in "
        "NVFP4); get config.json and weights from one revision",
        {
            ".weight": ones("U8", 0x22, 2, 128),
            ".weight_scale": raw("F8_E4M3", 2, 8),
            ".weight_scale_2": raw("F32"),
        },
    ),
    "codes/shard-of-scales-cut": sharded(
        "the tensors do not fill the file (found 121 bytes, expected 122); fetch the file again",
        "2.safetensors",
        **{"1.safetensors": _SHARD, "2.safetensors": _SCALES[:-1]},
    ),
    "codes/shard-of-scales-missing": sharded(
        f"tensor '{_STEM}.weight_scale_inv': the index names a file that is not in the "
        "folder (found 2.safetensors); fetch the missing file",
        _INDEX,
        **{"1.safetensors": _SHARD},
    ),
}
WORDS = {
    "codes/other-blocks": codes(
        f"tensor '{_STEM}.weight_scale_inv': its shape does not fit: the weight has shape "
        "[2, 256] (found F32 [1, 2], expected [1, 4] by weight_block_size [64, 64] of "
        "config.json); get config.json and weights from one revision",
        _OTHER,
        {"quantization_config": {**_BLOCKS, "weight_block_size": [64, 64]}},
    ),
    "codes/another-method": codes(
        f"tensor '{_STEM}.weight': config.json and the tensors contradict each other, or "
        f"it is a method unknown to tq3 (found F8_E4M3 with '{_STEM}.weight_scale_inv' F32"
        " [1, 2]; config.json says quant_method 'awq', expected codes of that method); get"
        " config.json and weights from one revision, or compress the checkpoint that it "
        "was made from",
        _OTHER,
        quantization("awq"),
    ),
    "codes/no-experts-in-fp4": codes(
        "what it says and the tensors contradict each other (found expert_dtype 'fp4'; no"
        " FP4 among the tensors of model.safetensors, expected the same of both); get "
        "config.json and weights from one revision",
        _OTHER,
        {"expert_dtype": "fp4"},
        names=_CONFIG,
    ),
    "codes/other-bits": codes(
        f"tensor '{_STEM}.weight_packed': config.json and the tensors contradict each "
        "other (found codes [2, 8], scales [2, 2], no zero points, expected 8 bits, "
        "groups of 32, symmetric); get config.json and weights from one revision",
        _PACKED,
        of_integers(num_bits=8),
    ),
    "codes/no-bits": codes(
        f"tensor '{_STEM}.weight_packed': config.json does not say how these integers are "
        "packed (found codes [2, 8], scales [2, 2], no zero points, expected num_bits and"
        " group_size in config_groups of quantization_config); get config.json and "
        "weights from one revision",
        _PACKED,
    ),
    "codes/mimo": codes(
        "its queries, keys and values are quantised in parts that tensors don't show "
        "(found model_type 'mimo_v2_flash'); compress a BF16 checkpoint of it: decoded by"
        " these scales alone, values would be wrong by factors",
        _OTHER,
        {"model_type": "mimo_v2_flash"},
        names=_CONFIG,
    ),
    "codes/six-bits": codes(
        "weights that can't be decoded (found floats of 6 bits, expected codes and scales"
        " alone); compress the checkpoint that it was made from",
        {".weight_packed": raw("U8", 2, 192), ".weight_scale": raw("U8", 2, 8)},
        of_integers(num_bits=6, type="float"),
        names=_CONFIG,
    ),
    "codes/rotated": codes(
        "weights that can't be decoded (found transform_config, by which a host rotates "
        "what goes into these weights, expected codes and scales alone); compress the "
        "checkpoint that it was made from",
        _OTHER,
        quantization(
            "compressed-tensors",
            transform_config={"config_groups": {"R4": {"apply": [{"location": "input"}]}}},
        ),
        names=_CONFIG,
    ),
    "codes/scaled-inputs": codes(
        f"tensor '{_STEM}.pre_quant_scale': a weight whose inputs are scaled before it "
        "can't be decoded (found BF16 [256], expected codes and scales alone); compress "
        "the checkpoint that it was made from",
        {**_OTHER, ".pre_quant_scale": raw("BF16", 256)},
    ),
    "codes/columns-in-another-order": codes(
        f"tensor '{_STEM}.weight_g_idx': columns of one scale that are no neighbours can't"
        " be decoded (found I32 [64], expected codes and scales alone); compress the "
        "checkpoint that it was made from",
        {**_PACKED, ".weight_g_idx": raw("I32", 64)},
        of_integers(),
    ),
}
VALUES = {
    "codes/nan": values(
        f"tensor '{_STEM}.weight': not a finite weight: nan at row 1, column 255; get a "
        "sound checkpoint, or --nonfinite keep to store it as it is",
        {**_OTHER, ".weight": ones("F8_E4M3", 0x38, 2, 256, last=0x7F)},
    ),
    "codes/nan-scale": values(
        f"tensor '{_STEM}.weight': not a finite weight: nan at row 0, column 128; get a "
        "sound checkpoint, or --nonfinite keep to store it as it is",
        {**_OTHER, ".weight_scale_inv": f32(1, float("nan"))},
    ),
    "codes/nan-exponent": values(
        f"tensor '{_STEM}.weight': not a finite weight: nan at row 1, column 224; get a "
        "sound checkpoint, or --nonfinite keep to store it as it is",
        {".weight": _PAIRS, ".scale": ones("F8_E8M0", 127, 2, 8, last=255)},
    ),
    "codes/nan-scale-of-nvfp4": values(
        f"tensor '{_STEM}.weight': not a finite weight: nan at row 1, column 240; get a "
        "sound checkpoint, or --nonfinite keep to store it as it is",
        {
            ".weight": ones("U8", 0x22, 2, 128),
            ".weight_scale": ones("F8_E4M3", 0x38, 2, 16, last=0xFF),
            ".weight_scale_2": f32(1)._replace(shape=()),
        },
    ),
    "codes/too-large": values(
        f"tensor '{_STEM}.weight': not a finite weight: 1.70141e+38 at row 0, column 0, "
        "and its square does not fit float32; get a sound checkpoint, or --nonfinite keep"
        " to store it as it is",
        {".weight": _PAIRS, ".scale": ones("F8_E8M0", 254, 2, 8)},
    ),
    "codes/another-width": codes(
        f"tensor '{_STEM}.weight_shape': another shape than codes and scales make with the"
        " bits of config.json, or columns that don't fill their words (found [2, 250], "
        "expected [2, 256]); get config.json and weights from one revision, or compress "
        "the checkpoint that they were made from",
        {
            ".weight_packed": raw("I32", 2, 32),
            ".weight_scale": raw("BF16", 2, 1),
            ".weight_shape": Tensor("I64", (2,), np.array([2, 250], "<i8").tobytes()),
        },
        of_integers(strategy="channel"),
        commands=("compress",),
    ),
    "codes/other-bits-of-the-same-shapes": values(
        f"tensor '{_STEM}.weight_shape': another shape than codes and scales make with the"
        " bits of config.json, or columns that don't fill their words (found [2, 256], "
        "expected [2, 128]); get config.json and weights from one revision, or compress "
        "the checkpoint that they were made from",
        {
            ".weight_packed": raw("I32", 2, 32),
            ".weight_scale": raw("BF16", 2, 8),
            ".weight_shape": Tensor("I64", (2,), np.array([2, 256], "<i8").tobytes()),
        },
        of_integers(num_bits=8, group_size=16),
    ),
    "codes/global-scale-of-zero": values(
        f"tensor '{_STEM}.weight_scale_2': a global scale of zero: no weight can be "
        "known by it (found 0.0, expected another number); fetch the checkpoint again, or "
        "compress the one that it was made from",
        {
            ".weight": ones("U8", 0x22, 2, 128),
            ".weight_scale": ones("F8_E4M3", 0x38, 2, 16),
            ".weight_scale_2": f32(0)._replace(shape=()),
        },
    ),
}
CASES = SCALES | WORDS | VALUES
