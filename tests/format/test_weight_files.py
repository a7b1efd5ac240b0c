"""Indices of any name, a single file beside shards, and folders that hold no model."""

from __future__ import annotations

import pytest
from support.factories import random_tensor, safetensors_bytes
from support.plan.folders import INDEX, index, names_of, read, refusal, shard

SINGLE = "model.safetensors"
CONSOLIDATED = "consolidated.safetensors.index.json"
SHARDS = {"1.safetensors": shard("a"), "2.safetensors": shard("b")}
WHOLE = index(a="1.safetensors", b="2.safetensors")
INDICES = [
    CONSOLIDATED,
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.fp16.json",
]


@pytest.mark.parametrize("name", INDICES)
def test_an_index_of_another_name_is_taken_where_it_names_the_files_there(name):
    checkpoint = read({name: WHOLE, "config.json": b"{}", **SHARDS})
    assert checkpoint.index == name
    assert checkpoint.weight_files == ("1.safetensors", "2.safetensors")


def test_of_two_indices_the_one_is_taken_whose_files_are_there():
    stale = index(a="gone.safetensors")
    assert read({CONSOLIDATED: WHOLE, INDICES[1]: stale, **SHARDS}).index == CONSOLIDATED


def test_the_usual_index_comes_before_any_other():
    others = {CONSOLIDATED: index(x="consolidated.safetensors")}
    files = {INDEX: WHOLE, **SHARDS, **others, "consolidated.safetensors": shard("x")}
    assert sorted(names_of(files)) == ["a", "b"]


def test_the_usual_file_comes_before_an_index_of_another_name():
    assert names_of({SINGLE: shard("single"), CONSOLIDATED: WHOLE, **SHARDS}) == ["single"]


def test_two_indices_that_may_be_meant_are_refused_with_a_way_out():
    files = SHARDS | {"3.safetensors": shard("a")}
    error = refusal({CONSOLIDATED: WHOLE, INDICES[2]: index(a="3.safetensors"), **files})
    assert CONSOLIDATED in str(error.found)
    assert INDICES[2] in str(error.found)
    assert f"to {INDEX}" in str(error.fix)


def test_an_index_of_another_name_beside_files_that_it_does_not_name_is_refused():
    error = refusal({CONSOLIDATED: WHOLE, **SHARDS, "3.safetensors": shard("c")})
    assert "3.safetensors" in str(error.found)


def test_a_shard_that_an_index_of_another_name_misses_is_named():
    error = refusal({CONSOLIDATED: WHOLE, "1.safetensors": shard("a")})
    assert (error.file, error.found) == (CONSOLIDATED, "2.safetensors")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"weight_map": 1}'])
def test_a_damaged_index_of_another_name_is_refused(content):
    assert refusal({CONSOLIDATED: content, **SHARDS}).file == CONSOLIDATED


def test_a_single_file_beside_shards_of_other_tensors_is_refused_with_both_named():
    error = refusal({SINGLE: shard("a"), INDEX: WHOLE, **SHARDS})
    assert error.tensor == "b"
    assert SINGLE in str(error.found)
    assert "1.safetensors to 2.safetensors" in str(error.found)
    assert "vLLM" in str(error.fix)


def test_a_single_file_beside_shards_of_other_shapes_is_refused():
    other = safetensors_bytes({"a": random_tensor(2, 4), "b": random_tensor(4, 2)})
    assert refusal({SINGLE: other, INDEX: WHOLE, **SHARDS}).tensor == "b"


def test_a_single_file_beside_shards_of_the_same_tensors_is_taken_with_a_notice():
    checkpoint = read({SINGLE: shard("a", "b"), INDEX: WHOLE, **SHARDS})
    assert checkpoint.files == (SINGLE,)
    assert checkpoint.copies == ("1.safetensors", "2.safetensors")
    (notice,) = checkpoint.notices
    assert "not the shards 1.safetensors to 2.safetensors, which vLLM" in notice
    assert "values were not compared" in notice


def test_of_one_shard_beside_a_single_file_one_is_spoken_of():
    files = {INDEX: index(a="1.safetensors"), "1.safetensors": shard("a")}
    (notice,) = read({SINGLE: shard("a"), **files}).notices
    assert "and not the shard 1.safetensors, which vLLM" in notice


def test_a_single_file_beside_an_index_of_files_that_are_gone_is_the_checkpoint():
    checkpoint = read({SINGLE: shard("single"), INDEX: WHOLE})
    assert (checkpoint.files, checkpoint.copies, checkpoint.notices) == ((SINGLE,), (), ())


def test_a_single_file_beside_half_of_its_shards_is_refused():
    error = refusal({SINGLE: shard("a", "b"), INDEX: WHOLE, "1.safetensors": shard("a")})
    assert error.found == "2.safetensors"
    assert SINGLE in str(error.fix)


def test_an_index_that_names_the_single_file_is_checked():
    assert names_of({SINGLE: shard("a"), INDEX: index(a=SINGLE)}) == ["a"]
    assert refusal({SINGLE: shard("a"), INDEX: index(b=SINGLE)}).tensor == "b"


def test_an_index_that_names_the_single_file_and_another_one_loses_neither():
    files = {SINGLE: shard("a"), "mtp.safetensors": shard("b")}
    assert names_of({**files, INDEX: index(a=SINGLE, b="mtp.safetensors")}) == ["a", "b"]


PIPELINE = {
    "model_index.json": b"{}",
    "text_encoder/model.safetensors": b"",
    "transformer/diffusion_pytorch_model.safetensors": b"",
    "transformer/config.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
}


@pytest.mark.parametrize("top", [{}, {"flux.safetensors": shard("a")}])
def test_a_pipeline_is_refused_and_its_folders_with_weights_are_named(top):
    error = refusal({**PIPELINE, **top})
    assert "pipeline" in str(error)
    assert str(error.fix).endswith(": text_encoder, transformer")


def test_a_pipeline_without_safetensors_has_no_folder_to_give():
    assert "none" in str(refusal({"model_index.json": b"{}"}).fix)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapters.safetensors"])
def test_a_folder_of_an_adapter_is_refused_whatever_its_tensors_are(file):
    error = refusal({"adapter_config.json": b"{}", file: shard("base_model.model.head.weight")})
    assert "an adapter" in str(error)
    assert "merge_and_unload" in str(error.fix)


def test_an_adapter_of_pickles_is_refused_as_one():
    error = refusal({"adapter_config.json": b"{}", "adapter_model.bin": b""})
    assert "an adapter" in str(error)


def test_a_model_beside_its_former_adapter_is_a_model():
    files = {SINGLE: shard("a"), "adapter_model.safetensors": shard("b")}
    assert names_of({**files, "adapter_config.json": b"{}", "config.json": b"{}"}) == ["a"]


def test_the_plain_file_is_taken_beside_its_variants():
    plain, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
    assert names_of({plain: shard("a"), half: shard("a")}) == ["a"]
    assert read({half: shard("a"), plain: shard("a")}).weight_files == (plain,)


def test_a_file_of_a_longer_name_is_no_variant():
    error = refusal({"model-a.safetensors": shard("a"), "model-a-b.safetensors": shard("b")})
    assert "several .safetensors files" in str(error)


def test_a_folder_whose_model_lies_below_names_where():
    files = {"modules.json": b"[]", "0_Transformer/model.safetensors": shard("a")}
    assert "0_Transformer" in str(refusal(files).fix)
