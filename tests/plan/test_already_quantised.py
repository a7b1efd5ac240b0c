"""Weights that are quantised already, by a way that is known and by any other one."""

from __future__ import annotations

import pytest
from support.plan.listings import checkpoint

from tq3.errors import BadInput
from tq3.format.files import CONFIG
from tq3.format.header import DTYPE_BITS, TensorInfo
from tq3.plan.quantised import FORMATS, refuse_quantised

# Label -> the tensors of one matrix: what follows its stem -> dtype.
KNOWN: dict[str, dict[str, str]] = {
    "a TQ3 checkpoint (.tq_packed)": {".weight.tq_packed": "U8", ".weight.tq_norms": "F32"},
    "a TQ3 checkpoint (.tq_trellis)": {".weight.tq_trellis": "U8", ".weight.tq_norms": "F32"},
    "a TQ3 checkpoint (.tq_norms)": {".weight.tq_norms": "F32"},
    "MXFP4 (_blocks and _scales)": {".experts.up_blocks": "U8", ".experts.up_scales": "U8"},
    "NVFP4 (weight_scale_2)": {
        ".weight_scale": "F8_E4M3",
        ".weight_scale_2": "F32",
        ".weight": "U8",
    },
    "NVFP4 of compressed-tensors (weight_packed and weight_global_scale)": {
        ".weight_packed": "U8",
        ".weight_scale": "F8_E4M3",
        ".weight_global_scale": "F32",
    },
    "MXFP4 of compressed-tensors (weight_packed and weight_scale)": {
        ".weight_scale": "U8",
        ".weight_packed": "U8",
    },
    "integers of compressed-tensors (weight_packed)": {
        ".weight_scale": "BF16",
        ".weight_packed": "I32",
        ".weight_shape": "I64",
    },
    "block-wise FP8 (weight_scale_inv)": {".weight": "F8_E4M3", ".weight_scale_inv": "F32"},
    "block-wise FP8 (_scale_inv)": {".experts.up": "F8_E4M3", ".experts.up_scale_inv": "F32"},
    "Mistral's FP8 (qscale_weight)": {".weight": "F8_E4M3", ".qscale_weight": "F32"},
    "DeepSeek's FP8 (scale)": {".weight": "F8_E4M3", ".scale": "F8_E8M0"},
    "DeepSeek's FP4 (scale)": {".weight": "I8", ".scale": "F8_E8M0"},
    "FP8 (weight_scale)": {".weight": "F8_E4M3", ".weight_scale": "F32"},
    "INT8 (weight_scale)": {".weight": "I8", ".weight_scale": "F32"},
    "BitNet or Gemma's QAT (weight_scale)": {".weight": "U8", ".weight_scale": "BF16"},
    "FP8 or compressed-tensors (weight_scale)": {".weight_scale": "F32"},
    "GPTQ or AWQ (qweight)": {".qweight": "I32", ".qzeros": "I32", ".scales": "F16"},
    "bitsandbytes, 4 bits (weight.absmax)": {".weight": "U8", ".weight.absmax": "U8"},
    "bitsandbytes, 8 bits (SCB)": {".weight": "I8", ".SCB": "F32", ".weight_format": "U8"},
    "MLX (scales)": {".weight": "U32", ".scales": "BF16", ".biases": "BF16"},
    "HQQ (W_q)": {".W_q": "U8", ".scale": "F16", ".zero": "F16"},
    "HQQ, its codes viewed as floats (W_q)": {".W_q": "F16", ".scale": "F16", ".zero": "F16"},
    "quanto (weight._data)": {".weight._data": "I8", ".weight._scale": "BF16"},
    "torchao (_weight_qdata)": {"._weight_qdata": "I8", "._weight_scale": "BF16"},
    "EETQ (weight_scales)": {".weight": "I8", ".weight_scales": "F16"},
    "EXL3 (trellis)": {".trellis": "I16", ".suh": "F16", ".svh": "F16"},
    "EXL2 (q_weight)": {".q_weight": "I32", ".q_scale": "I32", ".q_invperm": "I16"},
    "AQLM (codes and codebooks)": {".codes": "I8", ".codebooks": "F16", ".scales": "F16"},
    "QuIP# (Qidxs)": {".Qidxs": "I64", ".SU": "F16", ".SV": "F16"},
    "VPTQ (indices and centroids)": {".indices": "I32", ".centroids.weight": "F16"},
    "SpQR (dense_weights and row_offsets)": {
        ".dense_weights": "I64",
        ".row_offsets": "I64",
        ".col_vals": "I64",
    },
}
PLAIN = TensorInfo("model.norm.weight", "BF16", (8,))
MATRIX = TensorInfo("model.layers.0.mlp.up_proj.weight", "BF16", (128, 256))


def refusal(*infos: TensorInfo, **config: object) -> BadInput:
    """The error of a source with these tensors."""
    with pytest.raises(BadInput) as caught:
        refuse_quantised(checkpoint(PLAIN, *infos, config=config))
    return caught.value


def test_every_known_format_has_its_example():
    assert list(KNOWN) == [form.label for form in FORMATS]


@pytest.mark.parametrize("label", KNOWN)
def test_a_source_that_is_quantised_already_is_refused_by_its_format(label):
    stem = "model.layers.0.mlp.up_proj"
    error = refusal(*(TensorInfo(stem + end, dtype, (4, 4)) for end, dtype in KNOWN[label].items()))
    assert "already quantised" in str(error)
    assert f"{label}, for example '{stem}" in str(error.found)
    assert str(error.fix).startswith("compress ")


LOW = [dtype for dtype in DTYPE_BITS if dtype.startswith(("F8", "F6_", "F4"))]
CODES = [
    *(("a.weight", dtype, (4, 4)) for dtype in (*LOW, "I8", "U8", "I16", "U16", "I32", "U32")),
    *(("mlp.experts.up_proj", dtype, (2, 4, 4)) for dtype in (*LOW, "I8", "U8", "I32")),
    ("layers.0.moe.w13_weight", "I8", (2, 4, 4)),
    ("conv.weight", "I8", (4, 4, 3)),
    ("mlp.experts.3.up.weight", "U8", (4, 4)),
    ("anything", "F8_E4M3", (4, 4)),
]


@pytest.mark.parametrize(("name", "dtype", "shape"), CODES)
def test_a_matrix_of_weights_that_is_no_float_is_refused_whatever_lies_beside_it(
    name, dtype, shape
):
    error = refusal(TensorInfo(name, dtype, shape))
    assert f"{dtype} weights" in str(error.found)
    assert "unquantised" in str(error.fix) or "BF16" in str(error.fix)


ORDINARY = [
    TensorInfo("embeddings.position_ids", "I64", (1, 512)),
    TensorInfo("attn.relative_position_index", "I64", (49, 49)),
    TensorInfo("embeddings.token_type_ids", "I64", (1, 512)),
    TensorInfo("h.0.attn.bias", "BOOL", (1, 1, 64, 64)),
    TensorInfo("h.0.attn.bias", "U8", (1, 1, 64, 64)),
    TensorInfo("bn.num_batches_tracked", "I64", ()),
    TensorInfo("layers.0.ffn.gate.tid2eid", "I64", (64, 8)),
    TensorInfo("mlp.experts.tokens", "I32", (8,)),
    TensorInfo("a.weight", "F64", (4, 4)),
    *(
        TensorInfo(name, "BF16", (4, 4))
        for name in (
            *("experts.gate_up_proj_blocks", "scale", "weight_scale", "a.weight_scaled"),
            *(
                "a.qweights",
                "blocks.0.scales",
                "a.scale",
                "a.weight_scales",
                "x.codes",
                "x.indices",
            ),
            *("log_scale_inv", "a.scales", "W_q", "SCB", "a.weight_packed", "h.0.attn.W_q"),
            *("decoder.trellis", "attn.SCB", "attn.qweight", "a.Qidxs", "a.dense_weights"),
        )
    ),
]


@pytest.mark.parametrize("info", ORDINARY, ids=lambda info: f"{info.name} {info.dtype}")
def test_ordinary_integers_and_look_alikes_of_names_are_no_codes(info):
    refuse_quantised(checkpoint(MATRIX, info))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize(
    "within", [(), ("text_config",), ("llm_config",), ("thinker_config", "text_config")]
)
def test_a_config_at_any_depth_that_tells_of_codes_is_believed_where_there_may_be_some(key, within):
    config: object = {key: {"quant_method": "unheard-of"}}
    for name in reversed(within):
        config = {name: config}
    error = refusal(TensorInfo("a.strange", "I16", (4, 4)), **config)  # type: ignore[arg-type]
    assert error.file == CONFIG
    assert f"{'.'.join((*within, key))} with quant_method 'unheard-of'" in str(error.found)
    assert "already quantised" in str(error)


@pytest.mark.parametrize(
    "declared", [{"quant_method": "fp8"}, {"bits": 4}, "fp8", ["fp8"], {"a": {}}]
)
def test_a_config_that_tells_of_codes_over_ordinary_weights_is_refused_with_a_way_on(declared):
    ids = TensorInfo("embeddings.position_ids", "I64", (1, 512))
    error = refusal(MATRIX, ids, quantization_config=declared)
    assert "but they are not" in str(error)
    assert "quantization_config" in str(error.found)
    assert f"take it out of {CONFIG}" in str(error.fix)


BUFFERS = [
    TensorInfo("embeddings.token_type_ids", "I64", (1, 512)),
    TensorInfo("attn.relative_position_index", "I64", (49, 49)),
    TensorInfo("h.0.attn.bias", "U8", (1, 1, 64, 64)),
    TensorInfo("h.0.attn.masked_bias", "I32", ()),
    TensorInfo("layers.0.causal_mask", "BOOL", (64, 64)),
    TensorInfo("bn.num_batches_tracked", "I64", ()),
]


@pytest.mark.parametrize("info", BUFFERS, ids=lambda info: info.name)
def test_a_known_buffer_does_not_speak_for_codes(info):
    assert "but they are not" in str(refusal(MATRIX, info, quantization_config="fp8"))


@pytest.mark.parametrize("shape", [(5000,), (4, 4)])
@pytest.mark.parametrize("dtype", ["I64", "U8", "F8_E4M3"])
def test_what_may_be_codes_is_never_said_to_be_unquantised(dtype, shape):
    info = TensorInfo("model.layers.0.mlp.up_proj.bitstream", dtype, shape)
    error = refusal(MATRIX, info, quantization_config={"quant_method": "unheard-of"})
    assert "already quantised" in str(error)
    assert "take it out" not in str(error.fix)


@pytest.mark.parametrize("declared", [None, {}, {"quant_method": None}, False, "", []])
def test_a_config_that_says_nothing_is_none(declared):
    inner = {"quantization_config": declared}
    refuse_quantised(checkpoint(MATRIX, config={**inner, "text_config": inner}))


def test_quantization_is_a_word_of_other_things_too():
    assert "bits" in str(refusal(MATRIX, quantization={"bits": 4, "group_size": 64}).found)
    for other in ({"n_q": 8, "bits": 8}, True, "vector"):
        refuse_quantised(checkpoint(MATRIX, config={"codec_config": {"quantization": other}}))


def test_tensors_are_believed_before_the_config_which_is_named_too():
    mlx = [TensorInfo("a.weight", "U32", (4, 4)), TensorInfo("a.scales", "BF16", (4, 1))]
    found = str(refusal(*mlx, quantization={"group_size": 64}).found)
    assert found.startswith("MLX")
    assert "config.json has quantization {'group_size': 64}" in found


def test_who_asks_may_have_a_better_way_out():
    codes = checkpoint(TensorInfo("a.weight", "I8", (4, 4)))
    with pytest.raises(BadInput, match="name the original"):
        refuse_quantised(codes, "name the original")
