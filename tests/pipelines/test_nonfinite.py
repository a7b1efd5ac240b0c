"""A NaN, an infinity or a value beyond float32's squares ends the run, or is stored as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.factories import (
    Tensor,
    Tensors,
    contents,
    random_tensor,
    read_tensors,
    spoiled,
    visible,
)
from support.factories import tiny_checkpoint as checkpoint
from support.pipelines.kinds import as_float16, assert_same_tensors, encoded

import tq3
from tq3.errors import BadInput

SOUND = {"sound.weight": random_tensor(4, 128), "sound.bias": random_tensor(4)}
NAN, INF = float("nan"), float("inf")


def refusal(tmp_path: Path, tensors: Tensors, **options: object) -> BadInput:
    """The error that ends a compression; no checkpoint may be visible."""
    source = checkpoint(tmp_path / "in", {**SOUND, **tensors})
    with pytest.raises(BadInput) as caught:
        tq3.compress(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert visible(tmp_path / "out") == {}
    return caught.value


ENCODED = {
    "whole BF16": ("a.weight", random_tensor(6, 256), (4, 200), "row 4, column 200"),
    "whole F16": ("a.weight", random_tensor(6, 256, dtype="F16"), (0, 0), "row 0, column 0"),
    "whole F32": ("a.weight", random_tensor(6, 256, dtype="F32"), (5, 255), "row 5, column 255"),
    "padded BF16": ("a.weight", random_tensor(6, 300), (4, 299), "row 4, column 299"),
    "experts": (
        "mlp.experts.up_proj",
        random_tensor(3, 4, 256),
        (2, 1, 130),
        "index 2, row 1, column 130",
    ),
    "padded experts": (
        "mlp.experts.up_proj",
        random_tensor(3, 4, 300, dtype="F32"),
        (1, 3, 7),
        "index 1, row 3, column 7",
    ),
    "cast BF16": ("a.bias", random_tensor(700), (650,), "column 650"),
    "cast F32": ("lm_head.weight", random_tensor(6, 200, dtype="F32"), (3, 9), "row 3, column 9"),
    "copied F16": ("lm_head.weight", random_tensor(6, 200, dtype="F16"), (3, 9), "row 3, column 9"),
}


@pytest.mark.parametrize(("name", "sound", "at", "place"), ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("block_bytes", [1, 600, 2**20])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_value_that_is_not_finite_is_named_with_its_place(
    tmp_path, set_block_bytes, name, sound, at, place, value, block_bytes, workers
):
    set_block_bytes(block_bytes)
    error = refusal(tmp_path, {name: spoiled(sound, at, value)}, workers=workers)
    assert error.tensor == name
    assert f"{value:g} at {place}" in str(error)
    assert str(error).count(place) == 1
    assert "--nonfinite keep" in str(error.fix)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_an_exact_copy_is_checked_too(tmp_path, dtype):
    one = spoiled(random_tensor(6, 20, dtype=dtype), (3, 9), NAN)
    error = refusal(tmp_path, {"lm_head.weight": one}, keep_dtype="source")
    assert (error.tensor, "row 3, column 9" in str(error)) == ("lm_head.weight", True)


def test_a_number_without_a_dimension_needs_no_place(tmp_path):
    error = refusal(tmp_path, {"scale": spoiled(random_tensor(), (), NAN)})
    assert "nan" in str(error)
    assert " at " not in error.message


def test_the_first_of_several_is_named(tmp_path, set_block_bytes):
    set_block_bytes(600)
    one = spoiled(spoiled(random_tensor(6, 256), (5, 1), NAN), (2, 200), INF)
    assert "inf at row 2, column 200" in str(refusal(tmp_path, {"a.weight": one}, workers=1))


@pytest.mark.parametrize("value", [1e20, -3e38])
@pytest.mark.parametrize(("shape", "at"), [((6, 256), (4, 200)), ((6, 300), (4, 299))])
def test_a_value_whose_square_overflows_is_named_as_such(tmp_path, value, shape, at):
    one = spoiled(random_tensor(*shape, dtype="F32"), at, value)
    error = refusal(tmp_path, {"a.weight": one})
    assert f"{value:g} at row {at[0]}, column {at[1]}" in str(error)
    assert "square does not fit float32" in str(error)


def test_a_value_whose_square_overflows_is_no_fault_of_a_kept_tensor(tmp_path):
    one = spoiled(random_tensor(8, dtype="F32"), (3,), 1e30)
    tq3.compress(checkpoint(tmp_path / "in", {"a.bias": one}), tmp_path / "out", keep="*")
    assert read_tensors(tmp_path / "out") == {"a.bias": one}


def faulty() -> dict[str, Tensor]:
    """One tensor of each kind with a fault, in more than one block and shard."""
    late = spoiled(random_tensor(40, 256, seed=1), (39, 255), NAN)
    early = spoiled(random_tensor(4, 300, dtype="F32", seed=2), (0, 0), INF)
    return {
        "late.weight": late,
        "early.mlp.w2.weight": early,
        "square.mlp.w2.weight": spoiled(random_tensor(4, 128, dtype="F32", seed=3), (1, 1), 1e20),
        "cast.bias": spoiled(random_tensor(600, seed=4), (599,), NAN),
        "copied.bias": spoiled(random_tensor(600, dtype="F16", seed=5), (0,), NAN),
        "mlp.experts.up": spoiled(random_tensor(2, 2, 128, seed=6), (1, 0, 0), -INF),
    }


@pytest.mark.parametrize("block_bytes", [600, 2**20])
@pytest.mark.parametrize("workers", [1, 3])
def test_nonfinite_keep_stores_the_very_bytes(tmp_path, set_block_bytes, block_bytes, workers):
    set_block_bytes(block_bytes)
    source = checkpoint(tmp_path / "in", {**SOUND, **faulty()})
    tq3.compress(source, tmp_path / "out", nonfinite="keep", workers=workers, max_shard_size=10_000)
    expected = faulty() | encoded("sound.weight", SOUND["sound.weight"])
    expected["sound.bias"] = as_float16(SOUND["sound.bias"])
    assert_same_tensors(read_tensors(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert config["tq3"]["kept_source_dtype"].keys() == faulty().keys()
    assert config["compressed_layers"] == 1


def test_a_tensor_that_stays_for_its_values_has_no_part_in_the_reported_error(
    tmp_path, set_block_bytes
):
    set_block_bytes(600)
    rough = random_tensor(40, 256, seed=1)
    rough = spoiled(spoiled(rough, (0, 0), 1000.0), (39, 255), NAN)
    source = checkpoint(tmp_path / "in", {"rough.weight": rough, **SOUND})
    report = tq3.compress(source, tmp_path / "out", nonfinite="keep")
    assert (report.n_compressed, report.worst_tensor) == (1, "sound.weight")
    assert report.mean_error == report.worst_error


@pytest.mark.parametrize("nonfinite", ["error", "keep"])
def test_faults_of_types_that_are_never_changed_are_data(tmp_path, nonfinite):
    one = Tensor("F64", (2, 128), np.full((2, 128), NAN).tobytes())
    source = checkpoint(tmp_path / "in", {"double.weight": one})
    tq3.compress(source, tmp_path / "out", keep="*", nonfinite=nonfinite)
    assert read_tensors(tmp_path / "out") == {"double.weight": one}


def test_an_error_leaves_a_target_that_was_there_as_it_was(tmp_path):
    tq3.compress(checkpoint(tmp_path / "good", SOUND), tmp_path / "out")
    before = contents(tmp_path / "out")
    bad = checkpoint(tmp_path / "bad", faulty())
    with pytest.raises(BadInput):
        tq3.compress(bad, tmp_path / "out", overwrite=True)
    assert visible(tmp_path / "out") == before
