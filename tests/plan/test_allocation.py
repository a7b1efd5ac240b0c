"""Widths chosen for a size: within it, the best there is, joined tensors alike."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import product
from typing import Any

import pytest
from support.plan.listings import checkpoint, qwen

from tq3 import units
from tq3.codec.expected import expected_error
from tq3.errors import UsageError
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.format.widths import Widths
from tq3.plan.allocation import unreachable_target
from tq3.plan.compressing import plan_compression
from tq3.plan.plan import Plan
from tq3.plan.roles import fused_set_of, role_of
from tq3.plan.sensitivity import alphas


def widths_of(plan: Plan) -> dict[str, int | None]:
    """Name -> width of every matrix."""
    return {
        task.name: task.layout.bits if task.layout else None
        for task in plan.tasks
        if len(task.sources[0].info.shape) > 1
    }


def loss_of(plan: Plan, sizes: dict[str, int]) -> float:
    """The expected loss, from the definition."""
    alpha = alphas(sizes)
    return sum(
        alpha[task.name] * expected_error(task.scale, task.layout.bits, task.layout.group)
        for task in plan.tasks
        if task.layout
    )


def layer(i: int) -> list[TensorInfo]:
    """The matrices of a small layer."""
    shapes = {
        "self_attn.q_proj": (256, 128),
        "self_attn.v_proj": (128, 128),
        "mlp.gate_proj": (384, 128),
        "mlp.up_proj": (384, 128),
        "mlp.down_proj": (128, 384),
    }
    names = ((f"model.layers.{i}.{name}.weight", shape) for name, shape in shapes.items())
    return [TensorInfo(name, "BF16", shape) for name, shape in names]


SMALL = checkpoint(*layer(0), *layer(1))
SIZES = {tensor.info.name: tensor.info.n_elements for tensor in SMALL.tensors}


def uniform(**roles: tuple[int, ...]) -> Plan:
    """The plan with one width for each role."""
    return plan_compression(SMALL, Recipe(widths=Widths("x", (3,), roles)))


@pytest.mark.parametrize("size", [116_000, 130_000, 141_000, 160_000, 200_000])
def test_the_choice_for_a_size_is_the_best_of_all(size):
    recipe = Recipe(widths=Widths("x", (2, 3, 4), target_bytes=size))
    plan = plan_compression(SMALL, recipe)
    assert plan.file_bytes <= size
    keys = [fused_set_of(name, split_qkv=True) for name in SIZES]
    alpha = alphas(SIZES)
    sets: dict[str, tuple[float, int]] = {}
    for key, (name, n) in zip(keys, SIZES.items(), strict=True):
        before = sets.get(key, (0.0, 0))
        sets[key] = before[0] + alpha[name], before[1] + n
    header = plan.file_bytes - plan.bytes_out
    error = {bits: expected_error("search", bits, 128) for bits in (2, 3, 4)}
    best = min(
        sum(a * error[bits] for bits, (a, _) in zip(some, sets.values(), strict=True))
        for some in product((2, 3, 4), repeat=len(sets))
        if sum(n * bits // 8 + n // 32 for bits, (_, n) in zip(some, sets.values(), strict=True))
        <= size - header
    )
    assert loss_of(plan, SIZES) == pytest.approx(best, rel=1e-9)


def test_bits_a_weight_are_counted_over_what_may_be_compressed():
    widths = Widths("x", (3, 4), {"down": (None,)}, target_bpw=3.6)
    plan = plan_compression(SMALL, Recipe(widths=widths))
    packed = [task for task in plan.tasks if task.layout]
    n_weights = sum(task.sources[0].info.n_elements for task in packed)
    assert not any(role_of(task.name) == "down" for task in packed)
    bpw = sum(task.bytes_out for task in packed) * 8 / n_weights
    assert 3.5 < bpw <= 3.6


@pytest.mark.parametrize(("columns", "widths"), [(18, {None}), (26, {2}), (34, {2, 3})])
def test_no_width_is_chosen_that_takes_more_than_16_bits_do(columns, widths):
    narrow = TensorInfo("visual.fc1.weight", "BF16", (4096, columns))
    model = checkpoint(narrow, *(each.info for each in SMALL.tensors))
    for bpw in (4.25, 5.5):
        recipe = Recipe(widths=Widths("x", (2, 3, 4), target_bpw=bpw))
        assert widths_of(plan_compression(model, recipe))[narrow.name] in widths


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("cols", [128, 576])
def test_bits_of_a_code_are_counted_whatever_groups_and_padding_add(group_size, cols):
    """A recipe that comes along must do for every model."""
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(8)]
    vision = TensorInfo("visual.blocks.0.mlp.fc1.weight", "BF16", (4096, cols))
    model = checkpoint(vision, *(TensorInfo(name, "BF16", (256, cols)) for name in names))
    plan = plan_compression(model, make_recipe(recipe="mixed", group_size=group_size))
    found = widths_of(plan)
    assert found.pop(vision.name) == 4
    assert sorted(bits or 0 for bits in found.values()) == [3] * 6 + [4] * 2


def test_what_is_left_exact_says_by_which_recipe():
    plan = plan_compression(SMALL, Recipe(widths=Widths("mine", (3,), {"down": (None,)})))
    reasons = {role_of(task.name): task.reason for task in plan.tasks}
    assert reasons["down"] == "exact: down in recipe 'mine'"
    assert reasons["v"] == "a matrix of weights"


@pytest.mark.parametrize("options", [{"target_size": 5000}, {"target_bpw": 2.1}, {"target_bpw": 1}])
def test_a_target_that_cannot_be_reached_is_refused_with_what_can(options):
    with pytest.raises(UsageError, match=r"can't be reached \(found .* expected .* to ") as caught:
        plan_compression(SMALL, make_recipe(recipe="best", **options))
    assert caught.value.exit_code == 2
    assert "--norms float16" not in str(caught.value)  # targets have them already


def test_a_target_out_of_reach_names_smaller_norms_where_they_are_float32():
    with pytest.raises(UsageError, match="--norms float16 has smaller ones"):
        plan_compression(SMALL, make_recipe(target_bpw=1, norms="float32"))


def test_the_smallest_size_that_is_named_can_be_reached():
    with pytest.raises(UsageError) as caught:
        plan_compression(SMALL, make_recipe(target_size=1))
    smallest = int(str(caught.value.expected).split()[0].replace(",", ""))
    plan = plan_compression(SMALL, make_recipe(target_size=smallest))
    assert plan.file_bytes == smallest
    with pytest.raises(UsageError):
        plan_compression(SMALL, make_recipe(target_size=smallest - 1))


EMBEDDING, HEAD = (
    TensorInfo(name, "BF16", (256, 128)) for name in ("model.embed_tokens.weight", "lm_head.weight")
)
WAYS_OUT: dict[str, tuple[tuple[TensorInfo, ...], dict[str, Any], str]] = {
    "both": ((EMBEDDING, HEAD), {}, "--lm-head 4 and --embeddings 4 save most"),
    "one is asked for": ((EMBEDDING, HEAD), {"lm_head": 3}, "--embeddings 4 saves most"),
    "the other is": ((EMBEDDING, HEAD), {"embeddings": 3}, "--lm-head 4 saves most"),
    "one may not be": ((EMBEDDING, HEAD), {"keep": "lm_head.*"}, "--embeddings 4 saves most"),
    "only others may": ((EMBEDDING, HEAD), {"only": "*proj*"}, "a recipe that allows fewer"),
    "both are": ((EMBEDDING, HEAD), {"lm_head": 3, "embeddings": 4}, "a recipe that allows fewer"),
    "they are tied": ((EMBEDDING,), {}, "--embeddings 4 saves most"),
    "tied, and asked for": ((EMBEDDING,), {"lm_head": 4}, "a recipe that allows fewer"),
    "neither is there": ((), {}, "a recipe that allows fewer"),
}


@pytest.mark.parametrize(("tables", "options", "advice"), WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_size_that_is_too_small_names_only_what_still_helps(tables, options, advice):
    with pytest.raises(UsageError) as caught:
        recipe = make_recipe(recipe="mixed", target_size=1, **options)
        plan_compression(checkpoint(*tables, *layer(0)), recipe)
    assert str(caught.value.fix).removeprefix("name ").startswith(advice)


def test_a_size_beyond_the_largest_takes_the_widest_of_all():
    recipe = Recipe(widths=Widths("x", (2, 3, 4), target_bytes=10**9))
    plan = plan_compression(SMALL, recipe)
    assert set(widths_of(plan).values()) == {4}
    assert unreachable_target(plan, recipe) == (
        f"1 GB, but the widest output that recipe 'x' allows has {units.size(plan.file_bytes)}"
    )


@pytest.mark.parametrize(
    ("others", "bpw", "told"),
    [((3, 4), 4.24, None), ((3, 4), 4.25, None), ((3, 4), 4.5, "4.250"), ((4, None), 20, "14.694")],
)
def test_only_bits_beyond_the_widest_are_spare(others, bpw, told):
    """v has one width: what is asked of it is no matter of the target."""
    recipe = Recipe(widths=Widths("x", others, {"down": (None,), "v": (4,)}, target_bpw=bpw))
    found = unreachable_target(plan_compression(SMALL, recipe), recipe)
    assert found == (
        told and f"{bpw} bits a weight, but the widest output that recipe 'x' allows has {told}"
    )


def test_a_width_for_the_head_is_one_for_tied_embeddings_too():
    embedding = TensorInfo("model.embed_tokens.weight", "BF16", (256, 128))
    head = TensorInfo("lm_head.weight", "BF16", (256, 128))
    recipe = make_recipe(lm_head=4)
    tied = widths_of(plan_compression(checkpoint(embedding, *layer(0)), recipe))
    assert tied[embedding.name] == 4
    own = widths_of(plan_compression(checkpoint(embedding, head, *layer(0)), recipe))
    assert (own[embedding.name], own[head.name]) == (None, 4)


def test_one_tensor_cannot_have_two_widths():
    embedding = TensorInfo("model.embed_tokens.weight", "BF16", (256, 128))
    with pytest.raises(UsageError, match="one width for lm_head, another one for embeddings"):
        plan_compression(checkpoint(embedding), make_recipe(lm_head=3, embeddings=4))


def test_what_shorter_headers_of_exact_tensors_leave_is_used():
    """The first choice that fits has longer headers to reckon with, and is smaller."""
    recipe = make_recipe(recipe="best", target_size=235_118, keep_dtype="float16", norms="float32")
    plan = plan_compression(SMALL, recipe)
    assert plan.file_bytes == 235_064


@pytest.mark.parametrize("size", range(120_000, 400_000, 37_777))
def test_a_size_is_kept_where_some_tensors_stay_exact(size):
    plan = plan_compression(SMALL, make_recipe(recipe="best", target_size=size))
    assert plan.file_bytes <= size


def test_other_heads_and_position_embeddings_stay_as_they_are():
    names = ("classifier.weight", "score.weight", "wpe.weight")
    infos = (TensorInfo(name, "BF16", (256, 128)) for name in names)
    plan = plan_compression(checkpoint(*infos), make_recipe(lm_head=4, embeddings=4))
    assert set(widths_of(plan).values()) == {None}


def test_what_the_user_keeps_stays_whatever_the_recipe_says():
    recipe = make_recipe(recipe="native", lm_head=4, keep=["*.down_proj.weight"])
    plan = plan_compression(SMALL, recipe)
    assert widths_of(plan)["model.layers.0.mlp.down_proj.weight"] is None


def test_only_compresses_what_the_recipe_would_leave():
    names = (
        "lm_head.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.up_proj.weight",
    )
    model = checkpoint(*(TensorInfo(name, "BF16", (256, 128)) for name in names))
    recipe = make_recipe(recipe="mixed", target_bpw=4.25, only=["lm_head.*", "*.gate.weight"])
    assert widths_of(plan_compression(model, recipe)) == dict(zip(names, (4, 4, None), strict=True))


@pytest.mark.parametrize("recipe", ["mixed", "best"])
@pytest.mark.parametrize("size", ["14GiB", 16_500_000_000, "20GB"])
def test_a_model_of_27_billion_weights_fits_to_the_byte_and_joined_tensors_are_alike(recipe, size):
    asked = make_recipe(recipe=recipe, target_size=size, lm_head=4, embeddings=4)
    assert asked.widths
    started = time.process_time()
    plan = plan_compression(qwen(), asked)
    assert time.process_time() - started < 3
    assert plan.file_bytes <= (asked.widths.target_bytes or 0)
    found = defaultdict(set)
    for name, bits in widths_of(plan).items():
        found[fused_set_of(name, split_qkv=asked.widths.split_qkv)].add(bits)
    assert all(len(some) == 1 for some in found.values())


def test_experts_of_a_layer_have_one_width_and_70_000_tensors_take_seconds():
    infos = [
        TensorInfo(f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight", "BF16", shape)
        for i in range(60)
        for e in range(384)
        for part, shape in (("gate", (768, 2048)), ("up", (768, 2048)), ("down", (2048, 768)))
    ]
    model = checkpoint(*infos)
    started = time.process_time()
    plan = plan_compression(model, make_recipe(target_bpw=3.5))
    assert time.process_time() - started < 20
    found = defaultdict(set)
    for name, bits in widths_of(plan).items():
        found[name.split(".experts.")[0] + role_of(name)].add(bits)
    assert len(found) == 120
    assert all(len(some) == 1 for some in found.values())
