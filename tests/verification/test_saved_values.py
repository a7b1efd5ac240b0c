"""Folders that hosts save of what they loaded: kept values became F16, then the model's type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.factories import Tensor, of_another_writer, random_tensor, tensor, tiny_checkpoint
from support.pipelines.beside import checks, compare
from support.pipelines.kinds import as_float16
from support.pipelines.spoiling import change_tensors

import tq3
from tq3.codec import reference

NAME = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def with_small_values(*shape: int, dtype: str = "BF16") -> Tensor:
    """Of which F16 rounds a few that BF16 has."""
    values = random_tensor(*shape, dtype=dtype, seed=1).values.copy()
    values[:, 0] = 1e-6 * values[:, 1]
    return tensor(values, dtype)


BF16 = with_small_values(64, 128)
# Larger than what the format keeps in F32.
F32 = with_small_values(1025, 1024, dtype="F32")


def cast(one: Tensor, dtype: str) -> Tensor:
    """To nearest, as hosts do it."""
    words = reference.from_float32(np.ascontiguousarray(one.values), dtype)
    return Tensor(dtype, one.shape, words.tobytes())


def saved(path: Path, source: Tensor, stored: Tensor, name: str = NAME) -> Path:
    """The checkpoint of a source with this tensor, as a host saves it that stores it so."""
    tensors = {name: source, "a.weight": random_tensor(128, 128)}
    tiny_checkpoint(path / "in", tensors)
    out = path / "out"
    tq3.compress(path / "in", out)
    change_tensors(of_another_writer(out), lambda tensors: tensors.update({name: stored}))
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["tq3"] = {"format_version": 1, "shapes": {}}
    (out / "config.json").write_text(json.dumps(config))
    (out / "tq_config.json").unlink()
    return out


@pytest.mark.parametrize(
    "source, dtype",
    [(BF16, "BF16"), (BF16, "F32"), (F32, "F32")],
    ids=["BF16 to BF16", "BF16 to F32", "F32 to F32"],
)
@pytest.mark.parametrize("by_f16", [True, False])
def test_values_that_became_f16_and_those_that_did_not_are_right(tmp_path, source, dtype, by_f16):
    stored = cast(as_float16(source) if by_f16 else source, dtype)
    result = compare(saved(tmp_path, source, stored), tmp_path / "in")
    assert result.ok
    changed = stored.values != source.values
    assert changed.any() == by_f16
    line = next(line for line in result.comparisons if line.tensor == NAME)
    assert (line.exact, line.n_rounded) == (not by_f16, np.count_nonzero(changed))
    assert line.largest_change == np.abs(stored.values - source.values).max()


@pytest.mark.parametrize("by_f16", [True, False])
def test_what_the_hosts_type_rounds_beyond_f16_is_told(tmp_path, by_f16):
    stored = cast(as_float16(F32) if by_f16 else F32, "BF16")
    (fault,) = compare(saved(tmp_path, F32, stored), tmp_path / "in").faults
    assert (fault.check, fault.tensor) == ("TQ507", NAME)
    assert fault.message.endswith(": F32, which the format stores as F16")


def off_by_a_step(one: Tensor) -> Tensor:
    """Its last value is the next one of its type."""
    words = one.words.copy()
    words[-1, -1] += 1
    return one._replace(data=words.tobytes())


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_value_that_is_neither_is_found(tmp_path, dtype):
    stored = off_by_a_step(cast(as_float16(BF16), dtype))
    (fault,) = compare(saved(tmp_path, BF16, stored), tmp_path / "in").faults
    assert (fault.check, fault.tensor) == ("TQ504", NAME)


def test_a_tensor_is_either_one_or_the_other(tmp_path, set_block_bytes):
    stored = BF16.words.copy()
    stored[32:] = cast(as_float16(BF16), "BF16").words[32:]
    path = saved(tmp_path, BF16, BF16._replace(data=stored.tobytes()))
    set_block_bytes(8 * 128 * 4)
    (fault,) = compare(path, tmp_path / "in").faults
    assert fault.check == "TQ504"
    assert fault.message.endswith(f"the first is number {32 * 128}")


@pytest.mark.filterwarnings("ignore:overflow")
def test_f16_is_no_excuse_where_the_format_does_not_keep_in_it(tmp_path):
    for path, source, expected in (
        (tmp_path / "vector", tensor(np.linspace(0.1, 1, 300), "F32"), "TQ504"),
        (tmp_path / "tiny", tensor(1e-7 * BF16.values), "TQ507"),
        (tmp_path / "large", tensor(np.where(BF16.values > 0.05, 1e5, 1.0)), "TQ504"),
    ):
        stored = cast(as_float16(source), source.dtype)
        name = NORM if source.dtype == "F32" else NAME
        assert checks(compare(saved(path, source, stored, name), path / "in")) == [expected]


def test_a_folder_that_no_host_saved_is_judged_as_ever(tmp_path):
    """Its writer says in tq_config.json how it keeps tensors."""
    tiny_checkpoint(tmp_path / "in", {NAME: BF16, "a.weight": random_tensor(128, 128)})
    tq3.compress(tmp_path / "in", tmp_path / "out", keep_dtype="source")
    stored = {NAME: cast(as_float16(BF16), "BF16")}
    change_tensors(of_another_writer(tmp_path / "out"), lambda tensors: tensors.update(stored))
    assert checks(compare(tmp_path / "out", tmp_path / "in")) == ["TQ504"]
