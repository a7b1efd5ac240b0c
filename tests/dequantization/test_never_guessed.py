"""Sources that would be decoded to other numbers are refused, and each fault by its name."""

from __future__ import annotations

from typing import Any

import pytest
from support.plan.listings import checkpoint

from tq3.dequantization.recognition import dequantised
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint
from tq3.format.header import TensorInfo

UP, GATE = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
Infos = tuple[TensorInfo, ...]


def of(stem: str, name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(f"{stem}.{name}", dtype, shape)


def shown(infos: Infos, config: dict[str, Any]) -> Checkpoint:
    return dequantised(checkpoint(*infos, config=config))


def refusal(infos: Infos, config: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        shown(infos, config)
    error = caught.value
    assert error.file and error.found is not None and error.expected and error.fix
    return str(error)


def groups(*targets: str, **weights: Any) -> dict[str, Any]:
    """What compressed-tensors says of one group."""
    group = {"targets": list(targets) or ["Linear"], "weights": weights}
    method = {"quant_method": "compressed-tensors", "config_groups": {"a": group}}
    return {"quantization_config": method}


def fp8(**said: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "fp8", **said}}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = of(UP, "weight", "F8_E4M3", 192, 192), of(UP, "weight_scale_inv", "F32", 2, 2)
BYTES = of(UP, "weight", "I8", 8, 32), of(UP, "weight_scale", "F32", 8, 1)
POINTS = (of(UP, "weight_zero_point", "I8", 8, 1),)
PACKED = of(UP, "weight_packed", "I32", 8, 8), of(UP, "weight_scale", "BF16", 8, 2)
OSS = TensorInfo("a_blocks", "U8", (2, 8, 4, 16)), TensorInfo("a_scales", "U8", (2, 8, 4))
NVFP4 = (
    of(UP, "weight", "U8", 8, 32),
    of(UP, "weight_scale", "F8_E4M3", 8, 4),
    of(UP, "weight_scale_2", "F32"),
)
DIVIDED = (
    of(UP, "weight_packed", "U8", 8, 32),
    of(UP, "weight_scale", "F8_E4M3", 8, 4),
    of(UP, "weight_global_scale", "F32", 1),
)

SAID: dict[str, tuple[Infos, dict[str, Any], list[str]]] = {
    "bytes without the zero points of config.json": (
        BYTES,
        groups(**INT8, symmetric=False),
        ["no zero points", "8 bits, one scale for a row, with zero points"],
    ),
    "bytes with zero points that config.json denies": (
        BYTES + POINTS,
        groups(**INT8, symmetric=True),
        ["scales [8, 1], zero points", "one scale for a row, symmetric"],
    ),
    "columns in another order, by config.json": (
        PACKED,
        groups(**INT4, actorder="group"),
        ["config.json", "actorder 'group'", "no weight_g_idx"],
    ),
    "columns in another order, by its other name": (
        PACKED,
        groups(**INT4, actorder="Dynamic"),
        ["actorder 'group'"],
    ),
    "columns in another order, by a bool": (PACKED, groups(**INT4, actorder=True), ["actorder"]),
    "scales of several blocks": (
        (FP8[0], of(UP, "weight_scale", "F32", 2, 2)),
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    str(side): {
                        "weights": {
                            "num_bits": 8,
                            "type": "float",
                            "strategy": "block",
                            "block_structure": [side, side],
                        }
                    }
                    for side in (96, 128)
                },
            }
        },
        ["2 kinds of blocks", "[96, 96] of config.json or", "[128, 128] of config.json"],
    ),
}
KINDS: dict[str, tuple[Infos, dict[str, Any], list[str]]] = {
    "NVFP4 where all is FP8": (
        NVFP4,
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "fp8"}},
        ["weight_scale' F8_E4M3 [8, 4]", "quant_algo 'FP8' of config.json"],
    ),
    "groups of 32 over NVFP4": (
        NVFP4,
        {"quantization": {"quant_algo": "NVFP4", "group_size": 32}},
        ["F8_E4M3 [8, 4]", "group_size 32 of config.json"],
    ),
    "groups of 32 over NVFP4, in config_groups": (
        DIVIDED,
        groups(num_bits=4, type="float", strategy="tensor_group", group_size=32),
        ["F8_E4M3 [8, 4]", "group_size 32 of config.json"],
    ),
    "gpt-oss under another method": (OSS, fp8(), ["U8 with 'a_scales'", "quant_method 'fp8'"]),
    "E4M3 where config.json says E5M2": (
        FP8,
        fp8(fmt="e5m2"),
        ["F8_E4M3 with", "fmt 'e5m2' of config.json"],
    ),
}
UNREADABLE: dict[str, tuple[Infos, dict[str, Any], list[str]]] = {
    **{
        f"weight_block_size {size!r}": (
            FP8,
            fp8(weight_block_size=size),
            [f"weight_block_size {size!r}", "rows and columns"],
        )
        for size in (["192", "192"], [128.0, 128], 64, "128", [128], [0, 128], [], "128x128")
    },
    "a method as a string": (
        FP8,
        {"quantization_config": "fp8"},
        ["quantization_config 'fp8'", "an object"],
    ),
    "a method as a string within": (
        FP8,
        {"text_config": {"compression_config": ["fp8"]}},
        ["compression_config ['fp8']"],
    ),
    "groups as a list": (FP8, fp8(config_groups=[1]), ["config_groups [1]", "an object"]),
    "a group as a list": (FP8, fp8(config_groups={"a": ["Linear"]}), ["a ['Linear']"]),
    **{
        f"{key} {value!r}": (PACKED, groups(**(INT4 | {key: value})), [f"{key} {value!r}"])
        for key, value in (
            *(("num_bits", "4"), ("num_bits", 4.0), ("group_size", "32"), ("group_size", None)),
            *(("type", 4), ("strategy", "rows"), ("symmetric", "no"), ("actorder", "up")),
            *(("block_structure", "12"), ("block_structure", [1, 2, 3])),
        )
    },
}
PARTS: dict[str, tuple[Infos, dict[str, Any], list[str]]] = {
    "zero points beside FP8": (
        (*FP8, of(UP, "weight_zero_point", "F32", 2, 2)),
        {},
        ["weight_zero_point", "floats with zero points"],
    ),
    "zero points beside NVFP4": (
        (*DIVIDED, of(UP, "weight_zero_point", "F32", 8, 4)),
        {},
        ["weight_zero_point", "floats with zero points"],
    ),
    "a shape alone": (
        (*FP8, of(GATE, "weight_shape", "I64", 2)),
        {},
        ["a shape without its weight", f"no tensor '{GATE}.weight_packed'"],
    ),
    "a zero point alone": (
        (*FP8, of(GATE, "weight_zero_point", "I32", 8, 1)),
        {},
        ["a zero point without its weight", f"'{GATE}.weight' or '{GATE}.weight_packed'"],
    ),
    "gpt-oss without scales": (
        (*OSS, TensorInfo("b_blocks", "U8", (2, 8, 4, 16))),
        {},
        ["'b_blocks': codes without their scales", "no tensor 'b_scales'"],
    ),
    "gpt-oss without blocks": (
        (*OSS, TensorInfo("b_scales", "U8", (2, 8, 4))),
        {},
        ["'b_scales': a scale without its weight", "no tensor 'b_blocks'"],
    ),
    "integers without scales": (
        (*PACKED, of(GATE, "weight_packed", "I32", 8, 8)),
        groups(**INT4),
        [f"'{GATE}.weight_packed': codes without", f"no tensor '{GATE}.weight_scale'"],
    ),
    "integers without codes": (
        (*PACKED, of(GATE, "weight_scale", "BF16", 8, 8)),
        groups(**INT4),
        [f"'{GATE}.weight_scale': a scale without", f"no tensor '{GATE}.weight'"],
    ),
    "a scale of 64 bits": (
        (*FP8, of(GATE, "weight", "F8_E4M3", 8, 8), of(GATE, "weight_scale_inv", "F64", 1, 1)),
        {},
        [f"'{GATE}.weight_scale_inv': a scale of a type", "F64 [1, 1]", "BF16 or F16 or F32"],
    ),
    "E5M2": (
        (*FP8, of(GATE, "weight", "F8_E5M2", 8, 8), of(GATE, "weight_scale_inv", "F32", 1, 1)),
        {},
        [f"'{GATE}.weight': 8-bit floats of a type", "F8_E5M2 [8, 8] with", "expected F8_E4M3"],
    ),
    "NVFP4 without weight_scale_2": (
        (
            *(*NVFP4, of(GATE, "weight", "U8", 8, 32)),
            of(GATE, "weight_scale", "F8_E4M3", 8, 4),
        ),
        {},
        [f"'{GATE}.weight': NVFP4 without its global scale", f"'{GATE}.weight_scale_2'"],
    ),
    "NVFP4 without weight_global_scale": (
        (
            *(*DIVIDED, of(GATE, "weight_packed", "U8", 8, 32)),
            of(GATE, "weight_scale", "F8_E4M3", 8, 4),
        ),
        {},
        ["NVFP4 without its global scale", f"'{GATE}.weight_global_scale'"],
    ),
    "NVFP4 without weight_scale": (
        (*NVFP4, of(GATE, "weight", "U8", 8, 32), of(GATE, "weight_scale_2", "F32")),
        {},
        [f"'{GATE}.weight': codes without their scales", f"'{GATE}.weight_scale'"],
    ),
    "two scales": (
        (*FP8, of(UP, "weight_scale", "F32", 1)),
        {},
        ["two scales for one weight", "F32 [1], and", "weight_scale_inv' F32 [2, 2]"],
    ),
    "a scale that is a weight with a scale": (
        (*DIVIDED, of(UP, "weight_scale.scale", "F32", 1)),
        {},
        ["weight_scale': codes of one weight, and scales of another one", "F8_E4M3 [8, 4]"],
    ),
    "there twice": (
        (*DIVIDED, of(UP, "weight", "BF16", 8, 64)),
        {},
        ["there twice", "one of them", "take the wrong one out"],
    ),
}


@pytest.mark.parametrize("what", SAID | KINDS)
def test_what_config_json_says_against_the_tensors_is_refused(what):
    infos, config, words = (SAID | KINDS)[what]
    text = refusal(infos, config)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_of_config_json_is_not_guessed(what):
    infos, config, words = UNREADABLE[what]
    text = refusal(infos, config)
    assert [word for word in ["config.json", *words] if word not in text] == []


@pytest.mark.parametrize("what", PARTS)
def test_a_part_that_is_missing_or_one_too_many_is_named(what):
    infos, config, words = PARTS[what]
    text = refusal(infos, config)
    assert [word for word in words if word not in text] == []


def test_two_groups_with_one_pattern_are_refused():
    ways = INT4, INT4 | {"num_bits": 8, "group_size": 16}
    said = {str(bits["num_bits"]): {"targets": [r"re:.*_proj$"], "weights": bits} for bits in ways}
    method = {"quant_method": "compressed-tensors", "config_groups": said}
    text = refusal(PACKED, {"quantization_config": method})
    assert "4 bits, groups of 32, symmetric or 8 bits, groups of 16, symmetric" in text


@pytest.mark.parametrize("order", [None, False, "static", "weight", "Static"])
def test_an_order_that_is_not_stored_is_taken(order):
    found = shown(PACKED, groups(**INT4, actorder=order))
    assert found.source_quantization["formats"] == {"INT4 in groups of 32": 1}


@pytest.mark.parametrize(
    "said",
    [
        *({"quant_method": None}, {"quant_method": "FP8"}, {"config_groups": None}),
        {"weight_block_size": [128, 128], "quant_method": "Fp8"},
    ],
)
def test_what_is_null_or_written_in_capitals_is_taken(said):
    found = shown(FP8, {"quantization_config": {"fmt": "e4m3", **said}})
    assert found.source_quantization["formats"] == {"FP8 in blocks of 128 x 128": 1}


def test_blocks_of_compressed_tensors_may_be_text():
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "96x192"}
    scale = of(UP, "weight_scale", "F32", 2, 1)
    found = shown((FP8[0], scale), groups(**weights))
    assert found.source_quantization["formats"] == {"FP8 in blocks of 96 x 192": 1}


@pytest.mark.parametrize("within", [False, True])
def test_modelopt_under_its_other_key_is_read_and_taken_out(within):
    said: dict[str, Any] = {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    config = {"text_config": said} if within else said
    found = shown(NVFP4, config)
    assert found.config == ({"text_config": {}} if within else {})
    assert {**config, "formats": {"NVFP4 in groups of 16": 1}} == found.source_quantization


ATTENTION = "model.layers.0.self_attn"
CACHE: dict[str, tuple[TensorInfo, bool]] = {
    "one": (TensorInfo(f"{ATTENTION}.k_scale", "F32", ()), True),
    "one for each head": (TensorInfo(f"{ATTENTION}.v_scale", "BF16", (4,)), True),
    "one for each head, with axes": (TensorInfo(f"{ATTENTION}.k_scale", "F16", (4, 1, 1)), True),
    "of queries": (TensorInfo(f"{ATTENTION}.q_scale", "F32", (1,)), True),
    "a zero point": (TensorInfo(f"{ATTENTION}.k_zero_point", "I8", (1,)), True),
    "of an output": (TensorInfo(f"{ATTENTION}.k_proj.output_scale", "F32", ()), True),
    "learned": (TensorInfo(f"{ATTENTION}.k_scale", "F32", (64,)), False),
    "a learned matrix": (TensorInfo(f"{ATTENTION}.k_scale", "F32", (2, 2)), False),
    "whole numbers": (TensorInfo(f"{ATTENTION}.k_scale", "I64", (1,)), False),
    "an output of another layer": (TensorInfo("model.norm.output_scale", "F32", ()), False),
}


@pytest.mark.parametrize("what", CACHE)
def test_scales_of_a_cache_are_counted_as_they_go_and_learned_ones_stay(what):
    info, goes = CACHE[what]
    found = shown((*FP8, info), {"text_config": {"num_key_value_heads": 4}})
    assert (info.name not in [each.info.name for each in found.tensors]) == goes
    assert f"left behind: {'2 tensors' if goes else '1 tensor'} of scales" in found.notices[0]


def test_an_ordinary_model_keeps_what_has_such_a_name():
    info = TensorInfo(f"{ATTENTION}.k_scale", "F32", ())
    assert [each.info for each in shown((info,), {}).tensors] == [info]
