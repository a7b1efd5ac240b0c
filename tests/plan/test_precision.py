"""What keeps its type by its header alone: in the plan, with the reason, and what it loses."""

from __future__ import annotations

import pytest
from support.plan.listings import checkpoint

from tq3.format.header import TensorInfo
from tq3.format.precision import STRETCH, kept_dtype, what_is_lost, what_may_be_lost
from tq3.format.recipe import Recipe
from tq3.plan.compressing import plan_compression
from tq3.plan.plan import Action, Task
from tq3.plan.precision import main_dtype

BF16_MATRIX = TensorInfo("model.layers.0.mlp.up_proj.weight", "BF16", (8192, 8192))
F32_MATRIX = TensorInfo("model.layers.0.mlp.up_proj.weight", "F32", (8192, 8192))


def task(info: TensorInfo, beside: TensorInfo = BF16_MATRIX, recipe: Recipe | None = None) -> Task:
    """What becomes of a tensor beside another one that is much larger."""
    plan = plan_compression(checkpoint(info, beside), recipe or Recipe())
    return next(each for each in plan.tasks if each.name == info.name)


# Of DeepSeek-V3, GLM-4.5, MiniMax-M2, Kimi Linear, Qwen3.5, LongCat, remote code.
EXACT = {
    "model.layers.3.mlp.gate.e_score_correction_bias": (256,),
    "model.layers.3.block_sparse_moe.e_score_correction_bias": (256,),
    "model.layers.0.self_attn.A_log": (1, 1, 32, 1),
    "model.layers.0.self_attn.dt_bias": (4096,),
    "model.layers.0.linear_attn.norm.weight": (128,),
    "model.layers.0.mamba.A_log": (8192, 16),
    "inv_freq": (64,),
    "scale": (),
    "flat": (STRETCH + 1,),
    "model.layers.0.hc_attn_fn": (24, 28672),
    "model.embed_tokens.weight": (1024, 1024),
}


@pytest.mark.parametrize("beside", [BF16_MATRIX, F32_MATRIX], ids=["BF16", "F32"])
@pytest.mark.parametrize(("name", "shape"), EXACT.items())
def test_vectors_and_small_tensors_in_f32_stay_so_whatever_the_others_are(name, shape, beside):
    found = task(TensorInfo(name, "F32", shape), beside)
    assert (found.action, found.targets[0].dtype) == (Action.COPY, "F32")


def test_large_tables_in_f32_become_f16():
    found = task(TensorInfo("model.embed_tokens.weight", "F32", (1025, 1024)))
    assert (found.action, found.targets[0].dtype) == (Action.CAST, "F16")


MEANT = {
    "model.layers.3.block_sparse_moe.gate.weight": ((256, 3072), "decides which experts run"),
    "model.layers.3.mlp.gate.weight": ((768, 8192), "decides which experts run"),
    "model.layers.3.mlp.shared_expert_gate.weight": ((1, 4096), "decides which experts run"),
    "mtp.layers.0.mlp.gate.weight": ((256, 7168), "decides which experts run"),
    "model.layers.0.mamba.dt_proj.weight": ((8192, 256), "their error stays in the state"),
    "model.layers.0.altup.correction_coefs.weight": ((4, 4096), "narrow"),
}


@pytest.mark.parametrize("name", MEANT)
def test_matrices_that_decide_stay_in_f32_beside_16_bit_ones_and_say_why(name):
    shape, why = MEANT[name]
    found = task(TensorInfo(name, "F32", shape))
    assert (found.action, found.targets[0].dtype) == (Action.COPY, "F32")
    assert why in found.reason
    assert "in F32 beside 16-bit matrices" in found.reason


@pytest.mark.parametrize("name", MEANT)
def test_the_same_are_compressed_in_the_type_of_all_others(name):
    shape, _ = MEANT[name]
    assert task(TensorInfo(name, "F32", shape), F32_MATRIX).action is Action.ENCODE
    assert task(TensorInfo(name, "BF16", shape)).action is Action.ENCODE


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", (768, 768)),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", (3072, 768)),
        ("vision_tower.narrow.weight", (64, 768)),
        ("audio_tower.layers.0.self_attn.k_proj.weight", (512, 512)),
        ("model.layers.0.self_attn.k_proj.weight", (128, 4096)),
        ("model.wide.weight", (128, 4096)),
    ],
)
def test_towers_and_ordinary_matrices_in_f32_are_compressed_beside_16_bit_ones(name, shape):
    assert task(TensorInfo(name, "F32", shape)).action is Action.ENCODE


def test_what_the_user_chooses_comes_first():
    name = "model.layers.3.mlp.gate.weight"
    router = TensorInfo(name, "F32", (768, 8192))
    assert task(router, recipe=Recipe(only=("*mlp*",))).action is Action.ENCODE
    kept = task(router, recipe=Recipe(keep=(name,)))
    assert (kept.reason, kept.targets[0].dtype) == (f"asked for: --keep {name!r}", "F32")


def test_the_type_that_counts_is_that_of_most_bytes():
    infos = [TensorInfo("a", "F32", (4,)), TensorInfo("b", "BF16", (9,)), TensorInfo("c", "U8", ())]
    assert main_dtype(infos) == "bfloat16"
    assert main_dtype(infos[:1]) == "float32"
    assert main_dtype([]) is None


def test_what_is_lost_is_told_by_the_two_types():
    assert what_is_lost("F32", kept_dtype(TensorInfo("a.bias", "F32", (4,)))) == "nothing"
    assert what_is_lost("I64", kept_dtype(TensorInfo("ids", "I64", (4,)))) == "nothing"
    assert what_is_lost("BF16", "F16") == "bits below 2^-24"
    assert what_is_lost("F32", "F16") == "2^-11 of a value, bits below 2^-24"
    assert what_may_be_lost("F16") == "nothing, or what F16 can't hold"
    assert what_may_be_lost("F32") == what_may_be_lost("BF16") == "nothing"


def test_all_that_bf16_holds_and_f16_does_not_lies_below_2_to_the_minus_24():
    """The figure that is told, by the arithmetic itself."""
    np = pytest.importorskip("numpy")
    words = np.arange(0x0080, 0x4780, dtype=np.uint32)  # up to 65536, which overflows
    values = (words << 16).astype(np.uint32).view(np.float32)
    exact = values.astype(np.float16).astype(np.float32) == values
    assert exact[values >= 2.0**-17].all()
    assert np.array_equal(exact, np.mod(values.astype(np.float64), 2.0**-24) == 0)
