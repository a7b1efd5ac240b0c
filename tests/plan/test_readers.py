"""What readers of other makes can be told: two widths, the second by parts of names."""

from __future__ import annotations

import re
from collections import Counter
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plan.listings import checkpoint, qwen

from tq3.format.config import TqConfig
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.format.widths import Width, Widths
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


def told_by_names(widths: dict[str, Width]) -> TqConfig:
    """What tells the widest from the others, if names can."""
    packed = {name: bits for name, bits in widths.items() if bits}
    most = max(packed.values(), default=3)
    special = [name for name, bits in packed.items() if bits == most]
    texts = substrings(special, packed.keys() - set(special)) or ()
    main = min(packed.values(), default=3)
    return TqConfig(main, 128, sensitive_bits=most, sensitive_patterns=texts)


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
        "has no parts of names",
    ),
}


@pytest.mark.parametrize(("widths", "why"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_others_cannot_read_has_its_reason(widths, why):
    (found,) = obstacles(widths, ["F32"], told_by_names(widths))
    assert re.search(why, found)


@pytest.mark.parametrize(
    "widths", [{}, {"a.weight": 3, "b.weight": None}, attention(q=3, k=3, v=3, o=4)]
)
def test_what_others_can_read_has_none(widths):
    assert obstacles(widths, ["F32"], told_by_names(widths)) == ()


def test_others_take_norms_of_half_the_size_for_whole_ones():
    (found,) = obstacles({"a.weight": 3}, ["F32", "F16"], TqConfig(bits=3, group_size=128))
    assert "norms are F16" in found


def test_others_take_rows_that_are_outputs_for_inputs():
    config = TqConfig(bits=3, group_size=128)
    (found,) = obstacles({"a.experts.down_proj": 3}, ["F32"], config, transposed=True)
    assert "outputs as rows" in found


@pytest.mark.parametrize("bpw", [3.3, 3.5, 3.8, 4.1])
def test_a_equalized_model_of_27_billion_weights_can_be_read_by_others(bpw):
    recipe = make_recipe(recipe="mixed", target_bpw=bpw)
    plan = plan_compression(qwen(), recipe)
    widths = {task.name: task.layout.bits for task in plan.tasks if task.layout}
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model="m", revision=None, writer="w", error=None
    )
    assert {name: config.width_by_name(name) for name in widths} == widths
    assert obstacles(widths, ["F32"], config) == ()


# Some are parts of others: of two sets of them names may tell one and not the other.
ALIKE = ("mix", "remix", "mlp.fc1", "mlp.fc1.fc1", "fc1", "experts.0.w1", "experts.1.w1")


def planned(recipe: Recipe, sizes: dict[str, int]) -> tuple[dict[str, int], TqConfig]:
    """Widths of tensors that have so many groups of 128, and tq_config.json."""
    infos = (TensorInfo(f"{name}.weight", "BF16", (128, 128 * n)) for name, n in sizes.items())
    plan = plan_compression(checkpoint(*infos), recipe)
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model="m", revision=None, writer="w", error=None
    )
    return {task.name: task.layout.bits for task in plan.tasks if task.layout}, config


def test_where_names_tell_only_the_narrower_of_two_widths_it_is_the_second_one():
    """`mix` is a part of `remix`."""
    recipe = Recipe(bits=4, sensitive_bits=3, sensitive_patterns=("remix",))
    widths, config = planned(recipe, {"mix": 2, "remix": 1})
    assert widths == {"mix.weight": 4, "remix.weight": 3}
    assert obstacles(widths, ["F32"], config) == ()


@given(
    sizes=st.dictionaries(
        st.sampled_from([f"{tower}{part}" for tower in ("", "b.", "c.1.") for part in ALIKE]),
        st.integers(1, 9),
        min_size=2,
    ),
    bpw=st.floats(3.3, 4.2),
)
def test_the_plan_tells_of_an_obstacle_exactly_where_parts_of_names_cannot_tell(sizes, bpw):
    recipe = Recipe(only=("*",), widths=Widths("two", others=(3, 4), target_bpw=bpw))
    widths, config = planned(recipe, sizes)
    told = not any("parts of names" in why for why in obstacles(widths, ["F32"], config))
    by_name = {name: config.width_by_name(name) for name in widths}
    assert told == (by_name == widths)


def test_of_three_widths_the_one_that_holds_most_weights_is_recorded():
    recipe = make_recipe(target_bpw=3.0)
    plan = plan_compression(qwen(), recipe)
    weights: Counter[int] = Counter()
    for task in plan.tasks:
        if task.layout:
            weights[task.layout.bits] += prod(task.layout.shape)
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model="m", revision=None, writer="w", error=None
    )
    assert len(weights) == 3
    assert (config.bits, config.sensitive_bits) == (weights.most_common(1)[0][0], None)
