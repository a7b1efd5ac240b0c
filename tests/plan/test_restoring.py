"""Plans of restorations: shapes found again, contradictions refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.config import TqConfig
from tq3.format.header import TensorInfo
from tq3.format.layout import GroupLayout
from tq3.plan.plan import Action, Task
from tq3.plan.restoring import plan_restoration

PUBLISHED = TqConfig(bits=3, group_size=128)


def pair(name: str, shape: tuple[int, ...], bits: int = 3, group: int = 128) -> list[TensorInfo]:
    """A compressed tensor as it is stored."""
    return list(GroupLayout(shape, bits, group).tensors(name))


def restored(
    *infos: TensorInfo,
    config: TqConfig = PUBLISHED,
    model: Mapping[str, Any] | None = None,
    dtype: str = "BF16",
) -> dict[str, Task]:
    """Name -> task of the plan."""
    tensors = tuple(Located(info, "model.safetensors", 0) for info in infos)
    source = Checkpoint(tensors, {"model.safetensors": "as it was"}, model or {})
    return {task.name: task for task in plan_restoration(source, config, dtype, 2**40).tasks}


def shape_of(name: str, infos: list[TensorInfo], **options: Any) -> tuple[int, ...]:
    """The shape to which a tensor is restored."""
    (target,) = restored(*infos, **options)[name].targets
    return target.shape


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_a_pair_becomes_a_matrix_again_whatever_its_width(bits, group):
    config = TqConfig(bits=3, group_size=group)
    found = restored(*pair("a.weight", (6, 512), bits, group), config=config)["a.weight"]
    assert found.action is Action.DECODE
    assert found.layout == GroupLayout((6, 512), bits, group)
    assert found.targets == (TensorInfo("a.weight", "BF16", (6, 512)),)


@pytest.mark.parametrize("norm_dtype", ["F32", "F16"])
def test_the_type_of_the_norms_is_that_of_the_header(norm_dtype):
    layout = GroupLayout((6, 128), 3, 128, norm_dtype)
    assert restored(*layout.tensors("a.weight"))["a.weight"].layout == layout


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_float_takes_the_dtype_asked_for_but_a_small_one_in_f32(dtype):
    kept = [TensorInfo(d, d, (4,)) for d in ("BF16", "F16", "F32")]
    large = TensorInfo("large", "F32", (1025, 1024))
    tasks = restored(*kept, large, *pair("a.weight", (6, 128)), dtype=dtype)
    assert tasks["F32"].targets[0].dtype == "F32"
    assert {tasks[name].targets[0].dtype for name in tasks if name != "F32"} == {dtype}
    assert not any(tasks[d].must_be_finite for d in ("BF16", "F16", "F32"))


def test_what_is_no_float_stays():
    tasks = restored(*(TensorInfo(d, d, (4,)) for d in ("F64", "I32", "BOOL", "F8_E4M3")))
    assert all(task.targets[0].dtype == name for name, task in tasks.items())


def test_recorded_shapes_come_first():
    config = TqConfig(3, 128, shapes={"a.weight": (2, 3, 300)})
    assert shape_of("a.weight", pair("a.weight", (6, 300)), config=config) == (2, 3, 300)


def test_published_columns_that_are_no_multiple_of_the_group_come_from_orig_in_dims():
    config = TqConfig(3, 128, original_in_dims={"a.weight": 300})
    assert shape_of("a.weight", pair("a.weight", (6, 300)), config=config) == (6, 300)


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
@pytest.mark.parametrize("nested", [True, False])
def test_published_fused_experts_are_counted_by_config_json(key, nested):
    model = {"text_config": {key: 4}} if nested else {key: 4}
    infos = pair("mlp.experts.up_proj", (24, 256))
    assert shape_of("mlp.experts.up_proj", infos, model=model) == (4, 6, 256)


@pytest.mark.parametrize("name", ["text_experts.up_proj", "layers.0.moe.w13_weight"])
def test_stacks_are_known_by_the_names_that_the_policy_knows(name):
    assert shape_of(name, pair(name, (24, 256)), model={"num_experts": 4}) == (4, 6, 256)


@pytest.mark.parametrize("name", ["mlp.experts.3.up_proj.weight", "mlp.shared_experts.up_proj"])
def test_experts_of_their_own_and_shared_ones_are_matrices(name):
    assert shape_of(name, pair(name, (24, 256)), model={"num_experts": 4}) == (24, 256)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"num_experts": 5},
        {"num_experts": 0},
        {"num_experts": "4"},
        {"num_experts": True},
        {"num_experts": None},
        {"text_config": None},
        {"text_config": [4]},
    ],
)
def test_fused_experts_that_nobody_counts_are_refused(model):
    with pytest.raises(BadInput, match="how many") as caught:
        restored(*pair("mlp.experts.up_proj", (24, 256)), model=model)
    assert caught.value.tensor == "mlp.experts.up_proj"


def test_a_count_that_does_not_divide_the_rows_gives_way_to_one_that_does():
    model = {"num_experts": 5, "num_local_experts": 4}
    infos = pair("mlp.experts.up_proj", (24, 256))
    assert shape_of("mlp.experts.up_proj", infos, model=model) == (4, 6, 256)


@pytest.mark.parametrize("lost", [0, 1])
def test_half_a_pair_is_refused(lost):
    infos = pair("a.weight", (6, 128))
    del infos[lost]
    with pytest.raises(BadInput, match="is missing") as caught:
        restored(*infos)
    assert caught.value.tensor == infos[0].name


GOOD_CODES, GOOD_NORMS = pair("a.weight", (6, 256))
CONTRADICTIONS = {
    "codes that are no bytes": (TensorInfo("a.weight.tq_packed", "I8", (12, 48)), GOOD_NORMS),
    "norms of another type": (GOOD_CODES, TensorInfo("a.weight.tq_norms", "BF16", (6, 2))),
    "norms without rows": (GOOD_CODES, TensorInfo("a.weight.tq_norms", "F32", (12,))),
    "too few codes": (TensorInfo("a.weight.tq_packed", "U8", (11, 48)), GOOD_NORMS),
    "too many codes": (TensorInfo("a.weight.tq_packed", "U8", (24, 48)), GOOD_NORMS),
    "a width that nobody writes": (TensorInfo("a.weight.tq_packed", "U8", (12, 16)), GOOD_NORMS),
    "codes of another shape": (TensorInfo("a.weight.tq_packed", "U8", (6, 96)), GOOD_NORMS),
    "norms of another shape": (GOOD_CODES, TensorInfo("a.weight.tq_norms", "F32", (3, 4))),
    "nothing": (
        TensorInfo("a.weight.tq_packed", "U8", (0, 48)),
        TensorInfo("a.weight.tq_norms", "F32", (0, 2)),
    ),
}


@pytest.mark.parametrize("infos", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_codes_and_norms_that_contradict_each_other_or_the_config_are_refused(infos):
    config = TqConfig(3, 128, shapes={"a.weight": (6, 256)})
    with pytest.raises(BadInput, match="contradict") as caught:
        restored(*infos, config=config)
    assert caught.value.tensor == "a.weight.tq_packed"


@pytest.mark.parametrize("shape", [(6, 128), (6, 300), (3, 256), (2, 2, 256), (0, 256)])
def test_a_recorded_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(BadInput, match="contradict"):
        restored(GOOD_CODES, GOOD_NORMS, config=TqConfig(3, 128, shapes={"a.weight": shape}))


@pytest.mark.parametrize("columns", [-1, 0, 128, 257, 10**30])
def test_recorded_columns_that_do_not_fit_are_refused(columns):
    config = TqConfig(3, 128, original_in_dims={"a.weight": columns})
    with pytest.raises(BadInput, match="contradict"):
        restored(GOOD_CODES, GOOD_NORMS, config=config)


RECORDED = TqConfig(3, 128, writer="tq3 0.1.0", compressed_layers=1)
UNTRUE = {
    "a count": (replace(RECORDED, compressed_layers=2), "not all compressed tensors"),
    "a width": (replace(RECORDED, bits=4, sensitive_bits=2), "its width"),
    "a shape": (replace(RECORDED, shapes={"b.weight": (6, 300)}), "not there"),
    "columns": (replace(RECORDED, original_in_dims={"b.weight": 300}), "not there"),
}


@pytest.mark.parametrize(("config", "complaint"), UNTRUE.values(), ids=UNTRUE)
def test_what_tq3_recorded_must_be_true_and_is_not_asked_of_others(config, complaint):
    restored(GOOD_CODES, GOOD_NORMS, config=RECORDED)
    with pytest.raises(BadInput, match=complaint) as caught:
        restored(GOOD_CODES, GOOD_NORMS, config=config)
    assert caught.value.file == "tq_config.json"
    restored(GOOD_CODES, GOOD_NORMS, config=replace(config, writer=None))


def test_a_group_size_other_than_the_writers_is_refused():
    with pytest.raises(BadInput, match="contradict"):
        restored(GOOD_CODES, GOOD_NORMS, config=TqConfig(3, 64))


def test_a_tensor_stored_twice_is_refused():
    with pytest.raises(BadInput) as caught:
        restored(*pair("a.weight", (6, 128)), TensorInfo("a.weight", "BF16", (6, 128)))
    assert caught.value.tensor == "a.weight"
