"""What readers of other makes can be told: two widths, the second by parts of names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import qwen

from tq3.format.request import make_recipe
from tq3.format.widths import Width
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.learned import NOTHING_LEARNED
from tq3.plan.readers import obstacles, substrings

PARTS = (
    "self_attn.q_proj",
    "self_attn.v_proj",
    "self_attn.qkv_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LAYERS = [f"model.layers.{i}.{part}.weight" for i in range(13) for part in PARTS]
NAMES = [*LAYERS, "mtp.layers.1.mlp.down_proj.weight", "lm_head.weight"]


def chosen(*texts: str) -> list[str]:
    """The names that contain one of the texts."""
    return [name for name in NAMES if any(text in name for text in texts)]


def told_apart(wanted: list[str]) -> tuple[str, ...]:
    """The texts that tell these names apart from the others; they do."""
    found = substrings(wanted, set(NAMES) - set(wanted))
    assert found is not None
    assert chosen(*found) == wanted
    return found


SHORT = {
    ("mlp.down_proj",): 1,
    ("self_attn.v_proj", "down_proj"): 2,
    ("model.layers.1.",): 1,  # not those of layers 10 to 12, nor of mtp
    ("model.layers.3.mlp.up_proj", "model.layers.4.mlp.up_proj"): 2,
    ("mtp.",): 1,
    ("lm_head",): 1,
}


@pytest.mark.parametrize(("texts", "n"), SHORT.items())
def test_a_short_list_tells_them_apart(texts, n):
    assert len(told_apart(chosen(*texts))) == n


def test_a_text_never_ends_inside_of_a_component():
    """`v_proj` is a part of `qkv_proj`, which has the other width."""
    assert told_apart(chosen("self_attn.v_proj")) == ("self_attn.v_proj",)


@given(wanted=st.sets(st.sampled_from(NAMES), min_size=1))
def test_what_is_told_apart_is_told_exactly(wanted):
    told_apart([name for name in NAMES if name in wanted])


def test_experts_of_a_layer_are_told_together_and_never_by_their_numbers():
    names = [
        f"layers.{i}.mlp.experts.{e}.{part}.weight"
        for i in range(20)
        for e in range(3)
        for part in ("w1", "w2")
    ]
    wanted = [name for name in names if name.startswith("layers.1.")]
    assert substrings(wanted, set(names) - set(wanted)) == ("layers.1.",)
    half = [name for name in wanted if "w1" in name]
    assert substrings(half, set(names) - set(half)) is None


def attention(**bits: Width) -> dict[str, Width]:
    """The widths of one layer's attention."""
    return {f"layers.0.self_attn.{part}_proj.weight": width for part, width in bits.items()}


OBSTACLES: dict[str, tuple[dict[str, Width], str]] = {
    "three widths": ({"a.weight": 2, "b.weight": 3, "c.weight": 4}, r"3 widths \(2, 3, 4 bits\)"),
    "q and v": (attention(q=3, k=3, v=4), "q, k and v of a layer differ"),
    "exact v": (attention(q=3, k=3, v=None), "q, k and v of a layer differ"),
    "head": ({"lm_head.weight": 4}, "lm_head.weight is packed"),
    "embeddings": ({"model.embed_tokens.weight": 4}, "embed_tokens.weight is packed"),
    "halves of experts": (
        {
            f"layers.{i}.experts.{e}.{part}.weight": 4 if part == "w1" and i == 0 else 3
            for i in (0, 1)
            for e in (0, 1)
            for part in ("w1", "w2")
        },
        "no parts of names",
    ),
}


@pytest.mark.parametrize(("widths", "why"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_others_cannot_read_has_its_reason(widths, why):
    (found,) = obstacles(widths, ["F32"])
    assert re.search(why, found)


@pytest.mark.parametrize(
    "widths", [{}, {"a.weight": 3, "b.weight": None}, attention(q=3, k=3, v=3, o=4)]
)
def test_what_others_can_read_has_none(widths):
    assert obstacles(widths, ["F32"]) == ()


def test_others_take_norms_of_half_the_size_for_whole_ones():
    (found,) = obstacles({"a.weight": 3}, ["F32", "F16"])
    assert "norms are F16" in found


@pytest.mark.parametrize("bpw", [3.3, 3.5, 3.8, 4.1])
def test_a_balanced_model_of_27_billion_weights_can_be_read_by_others(bpw):
    recipe = make_recipe(recipe="balanced", target_bpw=bpw)
    plan = plan_compression(qwen(), recipe)
    widths = {task.name: task.layout.bits for task in plan.tasks if task.layout}
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model="m", revision=None, writer="w", error=None
    )
    assert config.widths == {}
    assert {name: config.width_reader()(name) for name in widths} == widths
    assert obstacles(widths, ["F32"]) == ()


def test_three_widths_are_recorded_for_our_own_reader():
    recipe = make_recipe(target_bpw=3.0)
    plan = plan_compression(qwen(), recipe)
    widths = {task.name: task.layout.bits for task in plan.tasks if task.layout}
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model="m", revision=None, writer="w", error=None
    )
    assert config.sensitive_bits is None
    assert {name: config.width_reader()(name) for name in widths} == widths
    assert len(config.to_json()) < 10_000
