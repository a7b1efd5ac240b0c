"""What hosts join is stored alike: an exception is widened to it, and everybody is told."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.config import TqConfig
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.joined import in_words
from tq3.plan.learned import Learned
from tq3.plan.plan import Plan
from tq3.plan.roles import expert_set_of

QWEN, MIXTRAL = (
    "model.layers.{}.mlp.experts.{}.{}",
    "model.layers.{}.block_sparse_moe.experts.{}.{}",
)
KINDS = {
    "qwen3_moe": (QWEN, ("gate_proj.weight", "up_proj.weight"), "down_proj.weight"),
    "mixtral": (MIXTRAL, ("w1.weight", "w3.weight"), "w2.weight"),
    "of MTP": ("mtp." + QWEN, ("gate_proj.weight", "up_proj.weight"), "down_proj.weight"),
    "nemotron": ("backbone.layers.{}.mixer.experts.{}.{}", ("up_proj.weight",), "down_proj.weight"),
}
DENSE = tuple(
    f"model.layers.0.{part}_proj.weight"
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up", "mlp.down")
) + ("model.layers.0.mlp.shared_experts.gate_proj.weight",)


def names_of(kind: str) -> list[str]:
    """All experts of two layers, four each."""
    pattern, gate_up, down = KINDS[kind]
    parts = product(range(2), range(4), (*gate_up, down))
    return [pattern.format(layer, expert, part) for layer, expert, part in parts]


def checkpoint(*names: str) -> Checkpoint:
    infos = (TensorInfo(name, "BF16", (128, 128)) for name in names)
    tensors = tuple(Located(info, "model.safetensors", 0) for info in infos)
    return Checkpoint(tensors, {"model.safetensors": "as it was"}, {})


def plan_of(names: list[str], recipe: Recipe, exact: tuple[str, ...] = ()) -> Plan:
    return plan_compression(checkpoint(*names), recipe, Learned(dict.fromkeys(exact, "a NaN")))


def widths_of(plan: Plan) -> dict[str, int | None]:
    return {task.name: task.layout.bits if task.layout else None for task in plan.tasks}


def described(plan: Plan, recipe: Recipe, learned: Learned = Learned()) -> TqConfig:  # noqa: B008
    return describe_compression(
        plan, recipe, learned, model="m", revision=None, writer="w", error=None
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_matrix_of_one_expert_its_half_of_the_layer_is_kept(kind):
    names = names_of(kind)
    asked = names[3]
    plan = plan_of(names, Recipe(keep=(asked,)))
    kept = {name for name, bits in widths_of(plan).items() if bits is None}
    assert kept == {name for name in names if expert_set_of(name) == expert_set_of(asked)}
    assert plan.joined.keys() == kept - {asked}
    part = asked[asked.index("mlp." if "mlp." in asked else asked.split(".")[3]) :]
    assert set(plan.joined.values()) == {f"kept with {part} of the same layer: hosts join these"}
    reasons = {task.name: task.reason for task in plan.tasks}
    assert reasons[asked] == f"asked for: --keep {asked!r}"
    assert all(reasons[name] == why for name, why in plan.joined.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_does_not_choose_keeps_what_is_joined_with_it(kind):
    names = names_of(kind)
    plan = plan_of(names, Recipe(only=("*experts.0.*",)))
    assert set(widths_of(plan).values()) == {None}
    chosen = [name for name in names if ".experts.0." in name]
    assert sorted(plan.joined) == sorted(chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_what_values_keep_is_widened_too_and_stored_as_other_kept_tensors_are(kind):
    names = names_of(kind)
    plan = plan_of(names, Recipe(), exact=(names[-1],))
    kept = [task for task in plan.tasks if not task.layout]
    assert {task.name for task in kept} == {
        name for name in names if expert_set_of(name) == expert_set_of(names[-1])
    }
    dtypes = {task.name: task.targets[0].dtype for task in kept}
    assert dtypes.pop(names[-1]) == "BF16"
    assert set(dtypes.values()) == {"F16"}
    assert names[-1] not in plan.joined


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "sensitive"), [(3, 4), (4, 2)])
def test_of_two_widths_the_larger_is_taken_by_all_and_recorded(kind, bits, sensitive):
    recipe = Recipe(bits=bits, sensitive_bits=sensitive, sensitive_patterns=("experts.0.", ".q_"))
    names = [*names_of(kind), *DENSE]
    plan = plan_of(names, recipe)
    widths = widths_of(plan)
    assert {bits for name, bits in widths.items() if ".experts." in name} == {4}
    assert widths["model.layers.0.self_attn.q_proj.weight"] == sensitive
    assert widths["model.layers.0.self_attn.k_proj.weight"] == bits
    assert all("as wide as" in why for why in plan.joined.values())
    read = described(plan, recipe).width_by_name
    assert {name: read(name) for name in names} == widths


def test_patterns_that_tell_the_whole_truth_are_recorded_as_they_were_asked_for():
    recipe = Recipe(sensitive_bits=4, sensitive_patterns=("experts.", "o_proj"))
    config = described(plan_of(names_of("qwen3_moe"), recipe), recipe)
    assert (config.bits, config.sensitive_bits) == (3, 4)
    assert config.sensitive_patterns == ("experts.", "o_proj")


def test_dense_matrices_that_hosts_join_may_differ():
    recipe = Recipe(keep=("*q_proj*", "*up_proj*"), sensitive_bits=4, sensitive_patterns=("k_p",))
    plan = plan_of(list(DENSE), recipe)
    assert not plan.joined
    assert list(widths_of(plan).values()) == [None, 4, 3, 3, None, 3, 3]


def test_stacks_of_all_experts_are_alone():
    names = [f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate_up", "down")]
    infos = (TensorInfo(name, "BF16", (4, 128, 128)) for name in names)
    tensors = tuple(Located(info, "model.safetensors", 0) for info in infos)
    plan = plan_compression(Checkpoint(tensors, {}, {}), Recipe(keep=("*down_proj*",)))
    assert list(widths_of(plan).values()) == [3, None]


def test_a_recipe_gives_kept_experts_no_width_and_meets_its_target():
    names = names_of("qwen3_moe")
    recipe = make_recipe(recipe="mixed", target_bpw=3.5, keep=(names[0],))
    widths = widths_of(plan_of(names, recipe))
    by_set = defaultdict(set)
    for name, bits in widths.items():
        by_set[expert_set_of(name)].add(bits)
    assert all(len(found) == 1 for found in by_set.values())
    assert by_set[expert_set_of(names[0])] == {None}


def test_a_kept_tensor_has_no_recorded_norms():
    names = names_of("qwen3_moe")
    recipe, learned = Recipe(norms="float16"), Learned({names[2]: "a NaN"}, {names[5]: "large"})
    plan = plan_compression(checkpoint(*names), recipe, learned)
    assert described(plan, recipe, learned).float32_norms == {}


def test_the_sentences_name_the_first_tensor_and_count_the_others():
    names = names_of("qwen3_moe")
    plan = plan_of(names, Recipe(keep=("*experts.3.*",)))
    assert list(in_words(plan)) == [
        f"{names[0]} and 11 more are kept with mlp.experts.3.gate_proj.weight of the same layer: "
        "hosts join these",
        f"{names[2]} and 5 more are kept with mlp.experts.3.down_proj.weight of the same layer: "
        "hosts join these",
    ]
    assert list(in_words(plan, plan)) == []
    assert list(in_words(plan_of(names, Recipe()))) == []


def test_many_reasons_are_counted():
    names = [f"{layer}.mlp.experts.{expert}.w2.weight" for layer in range(9) for expert in range(9)]
    kept = tuple(f"{layer}.mlp.experts.{layer}.*" for layer in range(9))
    *told, last = in_words(plan_of(names, Recipe(keep=kept)))
    assert len(told) == 4
    assert last == "40 more tensors are stored as others that hosts join them with"


def test_experts_that_are_packed_by_half_are_said_to_be_decoded_by_vllm():
    plan = plan_of(names_of("mixtral"), Recipe(keep=("*w2*",)))
    (told,) = in_words(plan)
    assert told.startswith("model.layers.0.block_sparse_moe.experts and 1 more have only gate and")
    assert told.endswith("vLLM decodes the packed half")


@given(
    kept=st.sets(st.sampled_from(names_of("qwen3_moe"))),
    exact=st.sets(st.sampled_from(names_of("qwen3_moe"))),
    wide=st.sets(st.sampled_from(names_of("qwen3_moe")), min_size=1),
)
def test_no_set_is_ever_mixed(kept, exact, wide):
    names = names_of("qwen3_moe")
    recipe = Recipe(keep=tuple(kept), sensitive_bits=4, sensitive_patterns=tuple(wide))
    widths = widths_of(plan_of(names, recipe, tuple(exact)))
    sets = defaultdict(set)
    for name, bits in widths.items():
        sets[expert_set_of(name)].add(bits)
    assert all(len(found) == 1 for found in sets.values())
    assert {name for name, bits in widths.items() if bits is None} >= kept | exact
