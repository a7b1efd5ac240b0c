"""What becomes of the models that are published quantised: by names and shapes of each family."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.plan.families import BY_HAND, CLASSES, Row, saved_by_transformers, table
from support.plan.listings import checkpoint

from tq3.format.checkpoint import Checkpoint
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.widths import load_widths
from tq3.plan.compressing import plan_compression
from tq3.plan.plan import Plan
from tq3.plan.policy import Decision, decide
from tq3.plan.roles import expert_set_of, fused_set_of, role_of

TABLE = table()
PACKED = "packed"
# Keys and values made of what an Engram table holds: like nothing else in a model.
WITHOUT_A_ROLE = {"layers.0.engram.wkv.weight"}
ROUTER = "model.layers.0.mlp.gate.weight"
OTHERS = ("model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.self_attn.q_proj.weight")


def fate(row: Row) -> Decision:
    """The policy's decision, without any option."""
    dtype = "I64" if row.name.endswith("tid2eid") else "BF16"
    return decide(TensorInfo(row.name, dtype, row.shape), Recipe())


@pytest.mark.parametrize("family", TABLE)
def test_each_tensor_is_packed_or_stays_for_its_reason(family):
    found = {row.name: fate(row) for row in TABLE[family]}
    fates = {name: PACKED if d.compress else d.reason.split(":")[0] for name, d in found.items()}
    assert fates == {row.name: row.fate for row in TABLE[family]}


@pytest.mark.parametrize("family", TABLE)
def test_each_tensor_has_its_role(family):
    rows = TABLE[family]
    assert {row.name: role_of(row.name) for row in rows} == {row.name: row.role for row in rows}


def test_nothing_that_is_packed_is_without_a_role():
    packed = [row for rows in TABLE.values() for row in rows if row.fate == PACKED]
    assert {row.name for row in packed if row.role == "other"} == WITHOUT_A_ROLE


def test_the_table_has_every_family():
    assert TABLE.keys() == {*CLASSES, *BY_HAND}


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_the_table_has_the_names_and_shapes_of_transformers(family):
    saved = saved_by_transformers(family)
    shapes = {row.name: row.shape for row in TABLE[family]}
    assert {name: shapes.get(name) for name in saved} == saved


def sets(names: list[str]) -> int:
    """How many widths these tensors may have in a recipe that keeps q, k and v alike."""
    return len({fused_set_of(name, split_qkv=False) for name in names})


@pytest.mark.parametrize("prefix", ["layers.3.ffn", "mtp.0.ffn", "layers.3"])
def test_gate_and_up_of_all_experts_are_one_set_by_any_name(prefix):
    gate_up = [f"{prefix}.experts.{expert}.w{n}.weight" for expert in (0, 17) for n in (1, 3)]
    assert len({expert_set_of(name) for name in gate_up}) == 1
    assert expert_set_of(gate_up[0]) != expert_set_of(f"{prefix}.experts.0.w2.weight")


def test_latent_queries_keys_and_values_have_one_width_where_all_three_must():
    names = [f"layers.3.attn.{part}.weight" for part in ("wq_a", "wq_b", "wkv")]
    assert sets(names) == 1
    assert sets([*names, "layers.3.attn.indexer.wq_b.weight"]) == 2


def moe(*, is_quantised: bool) -> Checkpoint:
    """A router and what it is not, in a source that was quantised, or in one that was not."""
    found = checkpoint(*(TensorInfo(name, "BF16", (256, 256)) for name in (ROUTER, *OTHERS)))
    record = {"formats": {"FP8 blocks of 128": 2}} if is_quantised else {}
    return replace(found, source_quantization=record)


def packed_by(plan: Plan) -> set[str]:
    return {task.name for task in plan.tasks if task.layout}


def test_a_router_of_a_quantised_source_stays_exact_in_the_published_recipe():
    plan = plan_compression(moe(is_quantised=True), Recipe())
    assert packed_by(plan) == set(OTHERS)
    assert plan.tasks[0].reason == "router of a quantised source: it decides which experts run"


def test_a_router_of_another_source_is_packed_as_published():
    assert packed_by(plan_compression(moe(is_quantised=False), Recipe())) == {ROUTER, *OTHERS}


def test_what_is_asked_for_comes_before_the_source():
    only = plan_compression(moe(is_quantised=True), Recipe(only=("*",)))
    assert packed_by(only) == {ROUTER, *OTHERS}
    kept = plan_compression(moe(is_quantised=True), Recipe(keep=("*.gate.weight",)))
    assert kept.tasks[0].reason == "asked for: --keep '*.gate.weight'"


def test_a_recipe_with_widths_says_itself_what_becomes_of_routers(tmp_path):
    (tmp_path / "mine.toml").write_text("[roles]\nothers = 3\nrouter = 4\n")
    recipe = Recipe(widths=load_widths(str(tmp_path / "mine.toml")))
    assert packed_by(plan_compression(moe(is_quantised=True), recipe)) == {ROUTER, *OTHERS}
