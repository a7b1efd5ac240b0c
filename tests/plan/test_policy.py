"""Which tensors are compressed: real names of many models, look-alikes, and what the user asks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.plan.classes import class_of
from tq3.plan.policy import Decision, decide

MATRIX = (256, 256)


def decision(name: str, shape: tuple[int, ...] = MATRIX, dtype: str = "BF16", **recipe: object):
    """The fate of one tensor."""
    return decide(TensorInfo(name, dtype, shape), Recipe(**recipe))  # type: ignore[arg-type]


COMPRESSED = [
    # GPT-2
    ("h.0.attn.c_attn.weight", (768, 2304)),
    ("transformer.h.11.mlp.c_proj.weight", (3072, 768)),
    # BERT
    ("bert.encoder.layer.0.attention.self.query.weight", (768, 768)),
    ("bert.encoder.layer.0.output.dense.weight", (768, 3072)),
    ("bert.pooler.dense.weight", (768, 768)),
    # T5
    ("encoder.block.0.layer.0.SelfAttention.q.weight", (512, 512)),
    ("decoder.block.5.layer.2.DenseReluDense.wo.weight", (512, 2048)),
    # Llama
    ("model.layers.0.self_attn.q_proj.weight", (4096, 4096)),
    ("model.layers.31.mlp.down_proj.weight", (4096, 11008)),
    # Qwen3.5
    ("model.language_model.layers.0.linear_attn.in_proj_qkv.weight", (10240, 5120)),
    ("model.language_model.layers.0.linear_attn.in_proj_a.weight", (48, 5120)),
    ("model.language_model.layers.0.linear_attn.out_proj.weight", (5120, 6144)),
    ("model.visual.blocks.0.attn.qkv.weight", (3456, 1152)),
    ("model.visual.merger.linear_fc2.weight", (5120, 4608)),
    ("mtp.fc.weight", (5120, 10240)),
    ("mtp.layers.0.mlp.up_proj.weight", (17408, 5120)),
    ("model.language_model.layers.0.mlp.experts.gate_up_proj", (64, 1024, 2048)),
    ("model.language_model.layers.0.mlp.shared_expert.up_proj.weight", (512, 2048)),
    ("model.layers.0.mlp.experts.17.down_proj.weight", (2048, 768)),
    # Mixtral
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 4096)),
    ("model.layers.0.block_sparse_moe.experts.7.w2.weight", (4096, 14336)),
    # gpt-oss
    ("model.layers.0.mlp.experts.down_proj", (32, 2880, 2880)),
    ("model.layers.0.mlp.router.weight", (32, 2880)),
    # Granite, JetMoe, Step-3.5, DBRX
    ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 1024, 256)),
    ("model.layers.0.block_sparse_moe.router.layer.weight", (8, 256)),
    ("model.layers.0.shared_mlp.input_linear.weight", (512, 256)),
    ("model.layers.0.mlp.output_linear.weight", (8, 256, 512)),
    ("model.layers.0.self_attention.experts.input_linear.weight", (8, 256, 256)),
    ("model.layers.4.moe.gate_proj.weight", (8, 256, 256)),
    ("model.layers.4.moe.gate.weight", (8, 256)),
    ("transformer.blocks.0.ffn.experts.mlp.w1", (2048, 256)),
    ("transformer.blocks.0.ffn.router.layer.weight", (8, 256)),
    # Gemma
    ("model.layers.0.self_attn.o_proj.weight", (2048, 2048)),
    ("model.layers.0.per_layer_input_gate.weight", (256, 2048)),
    ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", (4304, 1152)),
    # names that only look like something that is kept
    ("model.shape_proj.weight", MATRIX),
    ("model.normalizer_free.gate_proj.weight", MATRIX),
    ("tape_encoder.weight", MATRIX),
    ("model.overhead.weight", MATRIX),
    ("model.reshape.fc.weight", MATRIX),
    ("model.head_mixer.fc.weight", MATRIX),
    ("model.multihead.q_proj.weight", MATRIX),
    ("transformer.blocks.0.ff_out.weight", MATRIX),
    ("encoder.layers.0.attn.v_head.weight", MATRIX),
    ("blocks.0.attention.output.weight", MATRIX),
    ("horizon_ff_layer.output_layer.weight", MATRIX),
    ("model.biased.weight", MATRIX),
    ("model.embedder_free.proj.weight", MATRIX),
    ("model.lm_header.weight", MATRIX),
    ("model.conv1dense.weight", MATRIX),
    ("model.abnormal.weight", MATRIX),
    ("model.decoder.weight", MATRIX),
    ("encoder.embedding_hidden_mapping_in.weight", MATRIX),
    # the smallest that pay
    ("a.weight", (1, 128)),
    ("a.weight", (128, 27)),
]

KEPT = [
    # GPT-2
    ("wte.weight", (50257, 768), "token embedding"),
    ("transformer.wpe.weight", (1024, 768), "position embedding"),
    ("h.0.ln_1.weight", (768,), "norm"),
    ("transformer.ln_f.weight", (768,), "norm"),
    ("h.0.attn.c_attn.bias", (2304,), "bias"),
    ("h.0.attn.bias", (1, 1, 1024, 1024), "bias"),
    # BERT
    ("bert.embeddings.word_embeddings.weight", (30522, 768), "token embedding"),
    ("bert.embeddings.position_embeddings.weight", (512, 768), "position embedding"),
    ("bert.embeddings.token_type_embeddings.weight", (2, 768), "token embedding"),
    ("bert.embeddings.LayerNorm.weight", (768,), "neither a matrix"),
    ("cls.predictions.decoder.weight", (30522, 768), "output head"),
    ("cls.seq_relationship.weight", (2, 768), "output head"),
    ("lm_head.decoder.weight", (50265, 768), "output head"),
    ("classifier.weight", (2, 768), "output head"),
    # T5
    ("shared.weight", (32128, 512), "token embedding"),
    ("model.shared.weight", (50265, 1024), "token embedding"),
    ("lm_head.linear.weight", (51200, 2048), "output head"),
    ("decoder.embed_tokens.weight", (32128, 512), "token embedding"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "position"),
    ("encoder.final_layer_norm.weight", (512,), "norm"),
    # LED, MusicGen, TAPAS, Bark, Mask2Former, SAM, CTRL, RWKV
    ("led.shared.weight", (50265, 768), "token embedding"),
    ("decoder.model.decoder.embed_tokens.3.weight", (2049, 1024), "token embedding"),
    ("tapas.embeddings.token_type_embeddings_2.weight", (256, 768), "token embedding"),
    ("semantic.input_embeds_layer.weight", (10048, 768), "token embedding"),
    ("semantic.position_embeds_layer.weight", (256, 768), "position embedding"),
    ("model.transformer_module.queries_embedder.weight", (100, 256), "token embedding"),
    ("mask_decoder.iou_token.weight", (1, 256), "learned tokens"),
    ("transformer.w.weight", (246534, 1280), "token embedding"),
    ("emb.weight", (65536, 2048), "token embedding"),
    # heads that are tied by default
    ("proj_out.weight", (51865, 384), "output head"),
    ("decoder.weight", (50368, 768), "output head"),
    ("vocab_projector.weight", (30522, 768), "output head"),
    # Llama
    ("model.embed_tokens.weight", (32000, 4096), "token embedding"),
    ("lm_head.weight", (32000, 4096), "output head"),
    ("model.norm.weight", (4096,), "norm"),
    ("model.layers.0.input_layernorm.weight", (4096,), "norm"),
    ("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), "neither a matrix"),
    # Qwen3.5
    ("model.language_model.layers.0.linear_attn.conv1d.weight", (10240, 1, 4), "convolution"),
    ("model.language_model.layers.0.linear_attn.A_log", (48,), "decay"),
    ("model.language_model.layers.0.linear_attn.dt_bias", (48,), "decay"),
    ("model.language_model.layers.0.linear_attn.norm.weight", (128,), "norm"),
    ("model.language_model.layers.3.self_attn.q_norm.weight", (256,), "norm"),
    ("model.visual.patch_embed.proj.weight", (1152, 3, 2, 16, 16), "patch embedding"),
    ("model.visual.pos_embed.weight", (2304, 1152), "position embedding"),
    ("model.visual.blocks.0.norm1.weight", (1152,), "norm"),
    ("mtp.pre_fc_norm_embedding.weight", (5120,), "norm"),
    # gpt-oss
    ("model.layers.0.mlp.experts.gate_up_proj_bias", (32, 5760), "bias"),
    ("model.layers.0.self_attn.sinks", (64,), "neither a matrix"),
    # Gemma
    ("model.embed_tokens_per_layer.weight", (262144, 8960), "token embedding"),
    ("vision_tower.vision_model.embeddings.patch_embedding.weight", (1152, 3, 14, 14), "patch"),
    ("vision_tower.vision_model.embeddings.position_embedding.weight", (4096, 1152), "position"),
    ("multi_modal_projector.mm_input_projection_weight", (1152, 2560), ".weight"),
    # others
    ("model.decoder.embed_positions.weight", (2050, 768), "position embedding"),
    ("gpt_neox.embed_in.weight", (50432, 6144), "token embedding"),
    ("tok_embeddings.weight", (32000, 4096), "token embedding"),
    ("output.weight", (32000, 4096), "output head"),
    ("language_model.output.weight", (92553, 2048), "output head"),
    ("transformer.output_layer.weight", (65024, 4096), "output head"),
    ("model.transformer.ff_out.weight", (126464, 4096), "output head"),
    ("text_linear.weight", (32000, 4096), "output head"),
    ("linears.3.weight", (2048, 1024), "output head"),
    ("v_head.weight", (1, 4096), "output head"),
    ("v_head.summary.weight", (1, 4096), "output head"),
    ("regression_layer.weight", (1, 4096), "output head"),
    ("score.weight", (2, 4096), "output head"),
    ("embed_out.weight", (50432, 6144), "output head"),
    ("medusa_head.0.weight", (32000, 4096), "output head"),
    ("mlp.gate_up_proj", (256, 256), ".weight"),
    ("tower.stack.weight", (4, 256, 256), "knows no experts of this name"),
    ("encoder.pos_conv_embed.conv.weight", (768, 48, 128), "convolution"),
    ("vit.embeddings.cls_token", (1, 1, 768), "single table"),
    ("vit.embeddings.position_embeddings", (1, 197, 768), "position embedding"),
    ("transformer.blocks.0.ffn.experts.mlp.w9", (2048, 256), ".weight"),
    ("experts_of_none.gate_up_proj", (4, 256, 256), "experts"),
    ("experts.3.weight", (127, 127), "below 128"),
    ("mlp.experts.gate_up_proj", (1000, 64, 64), "below 128"),
    ("a.weight", (0, 256), "empty"),
    ("a.weight", (), "0-D"),
]


@pytest.mark.parametrize(("name", "shape"), COMPRESSED)
def test_a_matrix_of_weights_is_compressed(name, shape):
    assert decision(name, shape) == Decision(True, "a matrix of weights")


@pytest.mark.parametrize(("name", "shape", "reason"), KEPT)
def test_what_is_kept_has_its_reason(name, shape, reason):
    found = decision(name, shape)
    assert not found.compress
    assert reason in found.reason


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "I8", "U8", "BOOL", "I64", "F4", "C64"])
@pytest.mark.parametrize("recipe", [{}, {"only": ("*",)}])
def test_other_dtypes_are_kept_whatever_is_asked(dtype, recipe):
    found = decision("a.weight", MATRIX, dtype, **recipe)
    assert not found.compress
    assert dtype in found.reason


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_float_of_16_or_32_bits_can_be_compressed(dtype):
    assert decision("a.weight", MATRIX, dtype).compress


def test_keep_sets_a_matrix_aside_and_is_named_as_the_reason():
    found = decision("layers.0.mlp.up_proj.weight", keep=("*.up_proj.weight",))
    assert found == Decision(False, "asked for: --keep '*.up_proj.weight'")


def test_only_compresses_what_the_patterns_would_keep():
    assert decision("lm_head.weight", only=("lm_head.*",)).compress
    assert decision("tiny", (4, 40), only=("tiny",)).compress
    assert decision("stack", (2, 4, 40), only=("*",)).compress


def test_with_only_nothing_else_is_compressed():
    found = decision("layers.0.mlp.up_proj.weight", only=("lm_head.weight", "other"))
    assert found == Decision(False, "not chosen by --only")


def test_keep_wins_over_only():
    assert not decision("a.weight", keep=("a.*",), only=("a.weight",)).compress


# The widest rows that groups would make longer: below are the bytes of their groups.
def test_what_stays_in_f32_is_compared_as_f32_where_it_is_chosen():
    router = TensorInfo("layers.0.mlp.gate.weight", "F32", (2**16, 20))
    fates = {
        dtype: decide(router, Recipe(only=("*",)), dtype).compress
        for dtype in ("float32", "bfloat16")
    }
    assert fates == {"float32": False, "bfloat16": True}


NO_GAIN = [
    ({}, 26),  # 48 + 4 at 3 bits
    ({"bits": 2}, 18),  # 32 + 4
    ({"bits": 4}, 34),  # 64 + 4
    ({"norms": "float16"}, 25),  # 48 + 2
    ({"group_size": 32}, 8),  # 12 + 4
    ({"group_size": 256}, 50),  # 96 + 4
    ({"sensitive_bits": 4}, 34),
]


@pytest.mark.parametrize("only", [(), ("*",)])
@pytest.mark.parametrize(("recipe", "columns"), NO_GAIN)
def test_what_would_not_become_smaller_is_kept_whatever_is_asked(recipe, columns, only):
    name = "layers.0.self_attn.o_proj.weight"
    found = decision(name, (4096, columns), only=only, **recipe)
    assert "would not become smaller" in found.reason
    assert not found.compress
    assert decision(name, (4096, columns + 1), only=only, **recipe).compress


def test_a_matrix_is_compared_with_what_it_is_stored_as():
    assert not decision("a.weight", (65536, 20), "F32").compress
    assert decision("a.weight", (65536, 20), "F32", keep_dtype="source").compress
    assert decision("a.weight", (4096, 20), "F32").compress  # small: it would stay F32


@pytest.mark.parametrize("shape", [(5,), (), (2, 2, 2, 2), (0, 5)])
def test_only_cannot_make_a_matrix_of_what_is_none(shape):
    found = decision("a.weight", shape, only=("*",))
    assert not found.compress
    assert "only" not in found.reason


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("a.weight", True),
        ("a", False),
        ("*a*", True),
        ("?.weight", True),
        ("[ab].weight", True),
        ("A.weight", False),
        ("b.*", False),
    ],
)
def test_globs_are_matched_with_the_whole_name_and_its_case(glob, matches):
    assert decision("a.weight", keep=(glob,)).compress is not matches


@pytest.mark.parametrize(
    "part",
    [
        *(".patch_embed", "embed_", "embed_tokens_", "a_", ".heads", ".a"),
        "." + "embed_" * 8 + "tokens_" * 7 + "a" * 40,
    ],
)
def test_a_name_of_a_megabyte_is_decided_at_once(part):
    """A pattern that looks at a name's rest again from each of its parts would take hours."""
    name = "x" + part * (10**6 // len(part)) + ".weight"
    started = time.process_time()
    assert decision(name).reason
    assert class_of(name)
    assert time.process_time() - started < 5


@given(
    name=st.text(max_size=30),
    shape=st.lists(st.integers(0, 300), max_size=4).map(tuple),
    dtype=st.sampled_from(["BF16", "F32", "I8"]),
)
def test_every_tensor_has_a_fate_and_a_reason_and_only_matrices_and_stacks_are_compressed(
    name, shape, dtype
):
    found = decision(name, shape, dtype)
    assert found.reason
    if found.compress:
        assert len(shape) in (2, 3)
        assert min(shape) > 0
        assert dtype != "I8"
