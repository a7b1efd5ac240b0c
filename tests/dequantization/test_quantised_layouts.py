"""What a quantised source is, from headers and config.json; contradictions name both sides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import quantised
from support.plan.listings import checkpoint

from tq3.dequantization.layouts import LAYOUTS
from tq3.dequantization.recognition import dequantised
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint
from tq3.format.header import TensorInfo

UP = "model.layers.0.mlp.up_proj"
NORM = TensorInfo("model.norm.weight", "BF16", (8,))
FP8 = TensorInfo(f"{UP}.weight", "F8_E4M3", (192, 256))
SCALE = TensorInfo(f"{UP}.weight_scale_inv", "F32", (2, 2))
OF_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def shown(*infos: TensorInfo, **config: Any) -> Checkpoint:
    return dequantised(checkpoint(NORM, *infos, config=config))


def refusal(*infos: TensorInfo, **config: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        shown(*infos, **config)
    return caught.value


def names(of: Checkpoint) -> list[str]:
    return [tensor.info.name for tensor in of.tensors]


def named(name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(f"{UP}.{name}", dtype, shape)


def test_an_ordinary_checkpoint_stays_what_it_is():
    plain = checkpoint(
        NORM, TensorInfo("a.weight", "BF16", (8, 8)), TensorInfo("a.scale", "F32", ())
    )
    assert dequantised(plain) is plain


def test_scales_activations_and_caches_are_gone_and_config_json_is_recorded():
    found = shown(
        *(FP8, SCALE, named("input_scale", "F32"), named("activation_scale", "F32", 1)),
        *(TensorInfo(f"model.layers.0.self_attn.{k}_scale", "F32", (1,)) for k in "kv"),
        *(TensorInfo(f"model.layers.0.{name}", "F32", (1,)) for name in ("scale", "q_scale")),
        TensorInfo("model.layers.0.self_attn.k_proj.k_scale", "F32", (64,)),
        quantization_config=OF_BLOCKS,
        store_dtype="fp8",
        text_config={"compression_config": {"format": "x"}, "hidden_size": 8},
    )
    learned = ["model.layers.0.scale", "model.layers.0.self_attn.k_proj.k_scale"]
    assert names(found) == [NORM.name, FP8.name, *learned]
    assert found.config == {"text_config": {"hidden_size": 8}}
    assert found.source_quantization == {
        "quantization_config": OF_BLOCKS,
        "store_dtype": "fp8",
        "text_config": {"compression_config": {"format": "x"}},
        "formats": {"FP8 in blocks of 128 x 128": 1},
    }
    (notice,) = found.notices
    left = "left behind: 6 tensors of scales, zero points and shapes"
    assert notice.endswith(f"FP8 in blocks of 128 x 128 (1 tensor); {left}")


def test_four_bits_are_warned_of():
    packed = named("weight_packed", "U8", 8, 32), named("weight_scale", "U8", 8, 2)
    *_, warning = shown(*packed).notices
    assert "a second loss" in warning


def test_the_source_is_counted_in_the_bytes_that_it_has():
    (_, weight) = shown(FP8, SCALE).tensors
    assert weight.info.n_bytes == 192 * 256 * 4
    assert weight.n_bytes == 192 * 256 + 16


def rotated(place: str) -> dict[str, Any]:
    """A transform_config of compressed-tensors."""
    return {"config_groups": {"R1": {"type": "hadamard", "apply": [{"location": place}]}}}


OF_ROWS = {
    "quant_method": "compressed-tensors",
    "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}},
}


def of_bytes(**more: Any) -> dict[str, Any]:
    """What compressed-tensors says of integers of 8 bits that it does not pack."""
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", **more}
    groups = {"a": {"weights": weights}}
    method = {"quant_method": "compressed-tensors", "config_groups": groups}
    return {"quantization_config": method}


BYTES, ASYMMETRIC = of_bytes(), of_bytes(symmetric=False)
STRANGE: dict[str, tuple[tuple[TensorInfo, ...], dict[str, Any], list[str]]] = {
    "config says other blocks": (
        (FP8, SCALE),
        {"quantization_config": {**OF_BLOCKS, "weight_block_size": [64, 64]}},
        ["[2, 2]", "[3, 4] by weight_block_size [64, 64] of config.json"],
    ),
    "pre-sharded rows": (
        (FP8, named("weight_scale_inv", "F32", 3, 2)),
        {"quantization_config": OF_BLOCKS},
        ["[3, 2]", "[2, 2] by weight_block_size [128, 128] of config.json"],
    ),
    "no blocks of a usual size": ((FP8, named("weight_scale_inv", "F32", 3, 2)), {}, ["[3, 2]"]),
    "another method": (
        (FP8, SCALE),
        {"quantization_config": {"quant_method": "gptq"}},
        ["F8_E4M3", "quant_method 'gptq'"],
    ),
    "no experts in FP4": ((FP8, SCALE), {"expert_dtype": "fp4"}, ["expert_dtype 'fp4'", "no FP4"]),
    "no experts in FP4, said beside the blocks": (
        (FP8, SCALE),
        {"quantization_config": {**OF_BLOCKS, "expert_dtype": "fp4"}},
        ["expert_dtype 'fp4'", "no FP4"],
    ),
    "experts in FP4": (
        (named("weight", "I8", 8, 32), named("scale", "F8_E8M0", 8, 2)),
        {"expert_dtype": "fp8"},
        ["expert_dtype 'fp8'", "FP4 among"],
    ),
    "a weight without its scale": (
        (FP8, SCALE, TensorInfo("b.weight", "F8_E4M3", (8, 8))),
        {},
        ["F8_E4M3 [8, 8]", "weight_scale_inv"],
    ),
    "a scale without its weight": (
        (FP8, SCALE, TensorInfo("b.weight_scale_inv", "F32", (1, 1))),
        {},
        ["no tensor 'b.weight'"],
    ),
    "a scale beside floats": (
        (
            *(FP8, SCALE, TensorInfo("b.weight_scale_inv", "F32", (1, 1))),
            TensorInfo("b.weight", "BF16", (8, 8)),
        ),
        {},
        ["BF16 [8, 8] in 'b.weight'"],
    ),
    "there twice": (
        (
            *(named("weight_packed", "U8", 8, 32), named("weight_scale", "U8", 8, 2)),
            named("weight", "BF16", 8, 64),
        ),
        {},
        ["weight_packed"],
    ),
    "a misshapen block of gpt-oss": (
        (
            TensorInfo("a.experts.up_proj_blocks", "U8", (2, 8, 4, 8)),
            TensorInfo("a.experts.up_proj_scales", "U8", (2, 8, 4)),
        ),
        {},
        ["[2, 8, 4, 8]", "[..., rows, groups, 16]"],
    ),
    "integers without config": (
        (named("weight_packed", "I32", 8, 4), named("weight_scale", "BF16", 8, 1)),
        {},
        ["codes [8, 4], scales [8, 1]", "num_bits and group_size"],
    ),
    "columns in another order": (
        (
            *(named("weight_packed", "I32", 8, 4), named("weight_scale", "BF16", 8, 1)),
            named("weight_g_idx", "I32", 32),
        ),
        {},
        ["weight_g_idx", "no neighbours"],
    ),
    "scaled inputs": (
        (FP8, SCALE, named("pre_quant_scale", "BF16", 256)),
        {},
        ["pre_quant_scale", "inputs are scaled"],
    ),
    "a part of low rank": (
        (FP8, SCALE, named("svdquant_lora_a", "BF16", 8, 256)),
        {},
        ["svdquant_lora_a", "low rank"],
    ),
    "rotated inputs": (
        (FP8, SCALE),
        {"quantization_config": {**OF_BLOCKS, "transform_config": rotated("input")}},
        ["config.json", "transform_config"],
    ),
    "a shape that is none": (
        (
            *(named("weight_packed", "I32", 8, 4), named("weight_scale", "BF16", 8, 1)),
            named("weight_shape", "I32", 2),
        ),
        {"quantization_config": OF_ROWS},
        ["weight_shape", "I32 [2]", "I64 [2]"],
    ),
    "several global scales": (
        (
            *(named("weight", "U8", 8, 32), named("weight_scale", "F8_E4M3", 8, 4)),
            named("weight_scale_2", "F32", 3),
        ),
        {},
        ["F32 [3]", "1 of F32"],
    ),
    "bytes of whatever kind": (
        (named("weight", "I8", 8, 32), named("weight_scale", "F32", 8, 1)),
        {},
        ["config.json does not say that these bytes are integers", "num_bits 8 and type int"],
    ),
    "bytes of Gemma's QAT": (
        (named("weight", "I8", 8, 32), named("weight_scale", "F32", 8, 1)),
        {"quantization_config": {"quant_method": "gemma"}},
        ["quant_method 'gemma'"],
    ),
    "bytes in rows of five": (
        (named("weight", "I8", 8, 5), named("weight_scale", "F32", 8, 1)),
        BYTES,
        ["I8 [8, 5]", "a multiple of 4 columns"],
    ),
    "zero points of bytes": (
        (
            named("weight", "I8", 8, 32),
            named("weight_scale", "F32", 8, 1),
            named("weight_zero_point", "I32", 1, 1),
        ),
        ASYMMETRIC,
        ["I32 [1, 1]", "I8 [8, 1]"],
    ),
    "MiMo": ((FP8, SCALE), {"model_type": "mimo_v2_flash"}, ["model_type 'mimo_v2_flash'"]),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_contradiction_is_refused_with_both_sides(what):
    infos, config, words = STRANGE[what]
    text = str(refusal(*infos, **config))
    assert [word for word in words if word not in text] == []


def test_integers_that_contradict_config_json_are_refused_with_both_sides():
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    groups = {"config_groups": {"group_0": {"weights": weights}}}
    method = {"quant_method": "compressed-tensors", **groups}
    codes, scales = named("weight_packed", "I32", 8, 5), named("weight_scale", "BF16", 8, 1)
    text = str(refusal(codes, scales, quantization_config=method))
    assert "codes [8, 5], scales [8, 1], no zero points" in text
    assert "4 bits, groups of 32, symmetric" in text


def of_two_groups(first: list[str], second: list[str]) -> dict[str, Any]:
    """Two ways to pack that give tensors of the same shapes."""
    weights = {"type": "int", "strategy": "group"}
    ways = {"num_bits": 4, "group_size": 128}, {"num_bits": 8, "group_size": 64}
    groups = {
        f"group_{i}": {"targets": targets, "weights": {**weights, **way}}
        for i, (targets, way) in enumerate(zip((first, second), ways, strict=True))
    }
    return {"quant_method": "compressed-tensors", "config_groups": groups}


PACKED = named("weight_packed", "I32", 8, 16), named("weight_scale", "BF16", 8, 1)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["Linear"], [r"re:.*\.(up|gate)_proj$"], "INT8 with a scale for each row"),
        ([r"re:.*mlp.*"], ["Linear"], "INT4 with a scale for each row"),
        ([r"re:.*up_proj"], [UP], "INT8 with a scale for each row"),
        (["Linear"], [r"re:.*attn.*"], "INT4 with a scale for each row"),
    ],
)
def test_targets_say_which_of_several_groups_is_meant(first, second, words):
    found = shown(*PACKED, quantization_config=of_two_groups(first, second))
    assert found.source_quantization["formats"] == {words: 1}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["Linear"], ["Linear"]),
        ([], []),
        (["re:.*mlp"], ["re:.*proj"]),
        (["Linear"], ["re:(.+)+up_proj$"]),
        (["Linear"], ["re:("]),
    ],
)
def test_what_targets_do_not_tell_is_refused_where_shapes_do_not_either(first, second):
    text = str(refusal(*PACKED, quantization_config=of_two_groups(first, second)))
    assert "4 bits, groups of 128, symmetric or 8 bits, groups of 64, symmetric" in text
    assert f"whose targets name '{UP}'" in text


@pytest.mark.parametrize(
    ("weights", "scale", "words"),
    [
        ({"strategy": "channel"}, (192, 1), "FP8 with a scale for each row"),
        ({"strategy": "tensor"}, (1,), "FP8 with a scale for each tensor"),
        (
            {"strategy": "block", "block_structure": [64, 128]},
            (3, 2),
            "FP8 in blocks of 64 x 128",
        ),
        ({"strategy": "group", "group_size": 32}, (192, 8), "FP8 in groups of 32"),
    ],
)
def test_compressed_tensors_says_the_blocks_of_each_group(weights, scale, words):
    group = {"weights": {"num_bits": 8, "type": "float", **weights}}
    method = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    found = shown(FP8, named("weight_scale", "BF16", *scale), quantization_config=method)
    assert found.source_quantization["formats"] == {words: 1}


def test_weights_that_lie_rotated_on_the_disk_are_taken_as_they_are():
    method = {**OF_BLOCKS, "transform_config": rotated("weight_input")}
    found = shown(FP8, SCALE, quantization_config=method)
    assert found.source_quantization["quantization_config"] == method


def test_blocks_of_modelopt_may_have_axes_of_one_between():
    method = {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}
    scale = named("weight_scale", "F32", 2, 1, 2, 1)
    found = shown(FP8, scale, quantization_config=method)
    assert found.source_quantization["formats"] == {"FP8 in blocks of 128 x 128": 1}


SIZES = st.sampled_from([1, 2, 3, 4, 16, 33, 64, 130])


@st.composite
def weights(draw: st.DrawFn) -> list[TensorInfo]:
    """The tensors of some layout, with shapes that may fit each other."""
    layout = draw(st.sampled_from(LAYOUTS))
    codes = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
    blocks = [-(-n // draw(st.sampled_from([1, 1, 2, 8, 16, 32, 128]))) for n in codes]
    codes += (16,) * (layout.codes == "_blocks")
    infos = [
        TensorInfo("a" + layout.codes, draw(st.sampled_from(layout.dtypes)), codes),
        TensorInfo(
            "a" + draw(st.sampled_from(layout.scales)),
            draw(st.sampled_from(layout.scale_dtypes)),
            draw(st.sampled_from([tuple(blocks), tuple(blocks[:1]), (), (1,)])),
        ),
    ]
    if layout.global_scale:
        infos.append(
            TensorInfo("a" + layout.global_scale, "F32", draw(st.sampled_from([(), (2,)])))
        )
    if layout.zero_points and draw(st.booleans()):
        infos.append(TensorInfo("a" + layout.zero_points, "I32", codes))
    return infos


ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, [], [0, 1], [1, 32], [2, 2], "a", {}, 4, 32, True, -1, "group", "int"]
)
WORDS: st.SearchStrategy[Any] = st.dictionaries(
    st.sampled_from(["num_bits", "group_size", "strategy", "type", "block_structure"]), ODD
) | st.builds(dict, num_bits=st.just(4), group_size=ODD, strategy=st.just("group"))
CONFIGS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["weight_block_size", "quant_algo", "config_groups"]),
    ODD | st.dictionaries(st.sampled_from(["a", "b"]), ODD | st.builds(dict, weights=WORDS | ODD)),
)


@given(weights(), CONFIGS)
def test_whatever_headers_and_config_say_each_piece_has_the_bytes_that_decoding_needs(
    infos, config
):
    quantised.check(quantised.placed(infos, {"quantization_config": config}))
