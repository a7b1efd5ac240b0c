"""Beside the source: what is wrong is told, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.factories import Tensor, random_tensor, spoiled, tensor, tiny_checkpoint
from support.pipelines.beside import GROUP, compare, compressed
from support.pipelines.kinds import EVERY_KIND, decoded
from support.pipelines.spoiling import SHARD, change_tensors, flip_in_tensor

import tq3


def spoil(path: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    change_tensors(path, lambda tensors: tensors.update({name: change(tensors[name])}))


def random_codes(stored: Tensor) -> Tensor:
    return stored._replace(data=np.random.default_rng(0).bytes(len(stored.data)))


def check(result: tq3.Verification) -> list[tuple[str, str | None]]:
    return [(fault.check, fault.tensor) for fault in result.faults]


@pytest.mark.parametrize("name", ["whole.bf16.weight", "padded.bf16.weight", "zeros.weight"])
def test_wrong_codes_are_found_and_codes_of_zeros_do_not_matter(every_kind, tmp_path, name):
    source, path = compressed(tmp_path, EVERY_KIND)
    spoil(path, f"{name}.tq_packed", random_codes)
    expected = [] if name == "zeros.weight" else [("TQ505", name)]
    assert check(compare(path, source)) == expected


def test_a_norm_where_there_were_zeros_is_found(tmp_path):
    source, path = compressed(tmp_path, EVERY_KIND)
    spoil(path, "zeros.weight.tq_norms", lambda old: tensor(np.full(old.shape, 1e-6), "F32"))
    result = compare(path, source)
    assert check(result) == [("TQ505", "zeros.weight")]
    lines = {line["tensor"]: line for line in result.to_dict()["comparisons"]}
    assert lines["zeros.weight"]["error"] is None  # infinite, which JSON does not know


def test_one_wrong_group_of_many_is_found(tmp_path):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(512, 1280)})
    group = 77 * 10 + 3
    spoil(path, "a.weight.tq_packed", lambda old: with_inverted_group(old, group))
    (fault,) = compare(path, source).faults
    assert fault.check == "TQ506"
    assert "1 of 5120 groups" in fault.message
    assert "group 3 of row 77" in fault.message


def with_inverted_group(stored: Tensor, group: int) -> Tensor:
    """Every code of one group becomes that of the opposite sign."""
    codes = np.frombuffer(stored.data, np.uint8).reshape(stored.shape).copy()
    codes[group] ^= 0xFF
    return stored._replace(data=codes.tobytes())


def test_norms_a_little_too_large_are_found_by_encoding_again(tmp_path):
    """Each group is only a little worse: the tensor as a whole tells it."""
    source, path = compressed(tmp_path, {"a.weight": random_tensor(128, 256)}, bits=2)
    spoil(path, "a.weight.tq_norms", lambda old: tensor(old.values * np.float32(1.15), "F32"))
    result = compare(path, source)
    (fault,) = result.faults
    assert fault.check == "TQ505"
    assert "encoding the source again gives 0.1" in fault.message
    (line,) = result.comparisons
    assert line.recoded_error == pytest.approx(0.1142, rel=0.05)


def test_a_better_coding_than_ours_is_no_fault(tmp_path):
    """The norm of least error: smaller than that which keeps the length."""
    weights = random_tensor(512, 1280)
    source, path = compressed(tmp_path, {"a.weight": weights}, scale="norm")
    before = compare(path, source).comparisons[0].error
    exact = weights.values.reshape(-1, GROUP)
    coded = decoded(weights, "F32", scale="norm").values.reshape(-1, GROUP)
    gain = (exact * coded).sum(1) / (coded * coded).sum(1)
    spoil(
        path,
        "a.weight.tq_norms",
        lambda old: tensor(old.values * gain.reshape(old.shape).astype(np.float32), "F32"),
    )
    result = compare(path, source)
    assert result.ok
    assert result.comparisons[0].error < before


def forget_recipe(path: Path) -> None:
    config = json.loads((path / "tq_config.json").read_text())
    del config["tq3"]["recipe"]
    (path / "tq_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("scale", ["norm", "search"])
def test_without_a_record_of_the_scale_codes_are_judged_as_published_ones(tmp_path, scale):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(512, 512)}, bits=4, scale=scale)
    forget_recipe(path)
    result = compare(path, source)
    assert result.ok
    assert result.comparisons[0].expected == pytest.approx(0.0092)


def test_codes_of_the_norm_that_are_called_searched_are_found(tmp_path):
    tensors = {"a.weight": random_tensor(512, 512)}
    source, path = compressed(tmp_path, tensors, bits=4, scale="norm")
    config = (path / "tq_config.json").read_text()
    (path / "tq_config.json").write_text(config.replace('"norm"', '"search"'))
    (fault,) = compare(path, source).faults
    assert fault.check == "TQ505"


def test_swapped_tensors_are_found(tmp_path):
    names = ("a.weight", "b.weight")
    tensors = {name: random_tensor(128, 128, seed=i) for i, name in enumerate(names)}
    source, path = compressed(tmp_path, tensors)

    def swap(stored: dict[str, Tensor]) -> None:
        for part in (".tq_packed", ".tq_norms"):
            first, second = (name + part for name in names)
            stored[first], stored[second] = stored[second], stored[first]

    change_tensors(path, swap)
    assert check(compare(path, source)) == [("TQ505", name) for name in names]


def test_a_source_that_is_not_finite_is_a_fault(tmp_path):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(128, 128)})
    bad = {"a.weight": spoiled(random_tensor(128, 128), (3, 5), float("nan"))}
    result = compare(path, tiny_checkpoint(tmp_path / "other", bad))
    assert check(result) == [("TQ505", "a.weight")]
    assert result.to_dict()["comparisons"][0]["error"] is None


@pytest.mark.parametrize("name", ["lm_head.weight", "a.bias", "number", "ids", "double.weight"])
def test_one_flipped_bit_of_a_kept_tensor_is_found(tmp_path, name):
    source, path = compressed(tmp_path, EVERY_KIND)
    flip_in_tensor(path / SHARD, name, bit=-8)
    result = compare(path, source)
    assert check(result) == [("TQ504", name)]
    assert "1 of " in result.faults[0].message
    assert [line.tensor for line in result.comparisons if line.exact is False] == [name]


def test_a_kept_value_that_became_infinite_is_found(tmp_path):
    tensors = {"norm.weight": tensor([1.0, 2.0], "F32")}
    source, path = compressed(tmp_path, tensors, keep="*")
    spoil(path, "norm.weight", lambda _: tensor([1.0, np.inf], "F16"))
    other = tiny_checkpoint(tmp_path / "other", {"norm.weight": tensor([1.0, 70000.0], "F32")})
    (fault,) = compare(path, other).faults
    assert (fault.check, fault.message) == (
        "TQ504",
        "1 finite values of the source are infinite as F16",
    )


@pytest.mark.parametrize("keep_dtype", ["float16", "source"])
def test_kept_tensors_in_either_type_are_exact(tmp_path, keep_dtype):
    source, path = compressed(tmp_path, EVERY_KIND, keep_dtype=keep_dtype)
    assert compare(path, source).ok


def test_missing_foreign_and_reshaped_tensors_are_told(tmp_path):
    kept = {name: EVERY_KIND[name] for name in ("ids", "a.bias", "norm.weight")}
    _, path = compressed(tmp_path, kept, keep="*")
    others = {
        "ids": replace_shape(EVERY_KIND["ids"], (5, 1)),
        "a.bias": tensor(np.zeros(7), "F32")._replace(dtype="I32"),
        "lm_head.weight": EVERY_KIND["lm_head.weight"],
    }
    result = compare(path, tiny_checkpoint(tmp_path / "other", others))
    assert check(result) == [
        ("TQ501", "lm_head.weight"),
        ("TQ502", "norm.weight"),
        ("TQ503", "a.bias"),
        ("TQ503", "ids"),
    ]


def replace_shape(one: Tensor, shape: tuple[int, ...]) -> Tensor:
    return one._replace(shape=shape)


def test_experts_of_another_shape_are_not_those_of_the_source(tmp_path):
    name = "layers.0.mlp.experts.gate_up_proj"
    _, path = compressed(tmp_path, {name: EVERY_KIND[name]})
    other = {name: replace_shape(EVERY_KIND[name], (4, 3, 256))}
    assert check(compare(path, tiny_checkpoint(tmp_path / "other", other))) == [("TQ503", name)]


def test_a_shard_that_cannot_be_read_is_told_and_hides_no_other(tmp_path):
    source, path = compressed(tmp_path, EVERY_KIND, max_shard_size=20_000)
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[0].write_bytes(b"")
    found = check(compare(path, source))
    assert found == [("TQ201", None)]


def test_a_source_that_is_compressed_or_absent_is_an_error(every_kind, tmp_path):
    _, path = every_kind
    with pytest.raises(tq3.BadInput, match="already quantised"):
        compare(path, path)
    with pytest.raises(tq3.BadInput, match="no such folder"):
        compare(path, tmp_path / "none")


def test_every_source_tensor_of_a_missing_shard_is_not_told_one_by_one(every_kind, tmp_path):
    source, _ = every_kind
    (tmp_path / "tq_config.json").write_text("{}")
    assert [name for name, _ in check(compare(tmp_path, source))] == ["TQ103", "TQ107"]
