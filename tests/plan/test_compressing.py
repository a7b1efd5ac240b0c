"""Plans of compressions: each tensor's task, and what tq_config.json records."""

from __future__ import annotations

import pytest
from support.plan.listings import checkpoint

from tq3.errors import UsageError
from tq3.format.config import MeasuredError
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.learned import Learned
from tq3.plan.plan import Action, Task

MATRIX = (128, 256)


def task(info: TensorInfo, recipe: Recipe, **exact: str) -> Task:
    """The one tensor's task."""
    (only,) = plan_compression(checkpoint(info), recipe, Learned(exact)).tasks
    return only


@pytest.mark.parametrize(("dtype", "shape"), [("BF16", MATRIX), ("F16", MATRIX), ("F32", MATRIX)])
def test_a_matrix_becomes_codes_and_norms(dtype, shape):
    found = task(TensorInfo("a.weight", dtype, shape), Recipe(bits=2, group_size=64))
    assert found.action is Action.ENCODE
    assert found.targets == (
        TensorInfo("a.weight.tq_packed", "U8", (512, 16)),
        TensorInfo("a.weight.tq_norms", "F32", (128, 4)),
    )


def test_norms_are_float16_where_the_recipe_says_so_and_the_values_do_not_forbid_it():
    plan = plan_compression(
        checkpoint(*(TensorInfo(f"{name}.weight", "BF16", MATRIX) for name in "ab")),
        Recipe(norms="float16"),
        Learned(float32_norms={"b.weight": "why"}),
    )
    dtypes = {each.name: each.targets[1].dtype for each in plan.tasks}
    assert dtypes == {"a.weight": "F16", "b.weight": "F32"}


KEPT = {
    ("BF16", "float16"): (Action.CAST, "F16"),
    ("F32", "float16"): (Action.COPY, "F32"),
    ("F16", "float16"): (Action.COPY, "F16"),
    ("F64", "float16"): (Action.COPY, "F64"),
    ("I32", "float16"): (Action.COPY, "I32"),
    ("BF16", "source"): (Action.COPY, "BF16"),
    ("F32", "source"): (Action.COPY, "F32"),
}


@pytest.mark.parametrize(("given", "expected"), KEPT.items())
def test_what_is_kept_and_small_is_stored_as_float16_or_as_it_is(given, expected):
    dtype, keep_dtype = given
    found = task(TensorInfo("a.bias", dtype, (256,)), Recipe(keep_dtype=keep_dtype))
    assert (found.action, found.targets[0].dtype) == expected
    assert found.must_be_finite


@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_what_the_values_forbid_keeps_its_type_and_is_not_checked_again(name):
    found = task(TensorInfo(name, "F32", MATRIX), Recipe(), **{name: "too large"})
    assert (found.action, found.targets[0].dtype) == (Action.COPY, "F32")
    assert found.reason == "too large"
    assert not found.must_be_finite


def test_sensitive_names_have_their_own_width():
    infos = [TensorInfo(f"{part}.weight", "BF16", MATRIX) for part in ("up_proj", "o_proj")]
    plan = plan_compression(checkpoint(*infos), Recipe(bits=3, sensitive_bits=4))
    assert [t.layout.bits for t in plan.tasks if t.layout] == [3, 4]


def test_the_config_records_what_the_stored_shapes_do_not_tell():
    infos = [
        TensorInfo("plain.weight", "BF16", (4, 256)),
        TensorInfo("padded.weight", "BF16", (4, 300)),
        TensorInfo("mlp.experts.up_proj", "F32", (2, 4, 256)),
        TensorInfo("mlp.experts.down_proj", "F32", (2, 4, 300)),
        TensorInfo("a.bias", "BF16", (300,)),
    ]
    recipe = Recipe(bits=4, sensitive_bits=2)
    plan = plan_compression(checkpoint(*infos), recipe)
    error = MeasuredError(0.03, 0.04, "plain.weight")
    config = describe_compression(
        plan,
        recipe,
        Learned({"a.bias": "why"}, {"plain.weight": "why not"}),
        model="org/m",
        revision="0a",
        writer="tq3 1",
        error=error,
    )
    assert config.compressed_layers == 4
    assert config.original_in_dims == {"padded.weight": 300, "mlp.experts.down_proj": 300}
    assert config.shapes == {
        "padded.weight": (4, 300),
        "mlp.experts.up_proj": (2, 4, 256),
        "mlp.experts.down_proj": (2, 4, 300),
    }
    assert (config.bits, config.sensitive_bits) == (4, 2)
    assert config.sensitive_patterns == ("o_proj", "down_proj")
    assert (config.original_model, config.source_revision, config.writer) == (
        "org/m",
        "0a",
        "tq3 1",
    )
    assert config.kept_source_dtype == {"a.bias": "why"}
    assert config.float32_norms == {"plain.weight": "why not"}
    assert config.source_bytes == plan.bytes_in
    assert config.measured_error == error


def test_the_source_dtype_is_that_of_most_bytes():
    def dtype_of(*infos: TensorInfo) -> str | None:
        plan = plan_compression(checkpoint(*infos), Recipe())
        return describe_compression(
            plan, Recipe(), Learned(), model="m", revision=None, writer="w", error=None
        ).source_dtype

    small, large = TensorInfo("a", "F32", (10,)), TensorInfo("b", "BF16", (100,))
    assert dtype_of(small, large) == "bfloat16"
    assert dtype_of(TensorInfo("a", "I8", (10,))) == "I8"


@pytest.mark.parametrize("recipe", [Recipe(keep=("lm_haed*",)), Recipe(only=("lm_haed*",))])
def test_a_glob_that_matches_nothing_is_a_usage_error(recipe):
    with pytest.raises(UsageError, match="lm_haed"):
        plan_compression(checkpoint(TensorInfo("lm_head.weight", "BF16", MATRIX)), recipe)
