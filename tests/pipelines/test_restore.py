"""The way back: names, shapes, types and the values that the reference decodes."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.factories import (
    Tensor,
    Tensors,
    contents,
    random_tensor,
    read_tensors,
    safetensors_bytes,
    spoiled,
    tensor,
    visible,
)
from support.factories import tiny_checkpoint as checkpoint
from support.pipelines.kinds import (
    COMPRESSED,
    EVERY_KIND,
    FLOATS,
    OTHERS,
    assert_same_tensors,
    decoded,
    encoded,
    kept,
)

import tq3
from tq3.codec.backend import available_backends
from tq3.errors import BadInput, UsageError
from tq3.plan.restoring import DTYPES

# Decoding F32 weights of 1e18 to F16 overflows: tested apart.
SAFE = {name: one for name, one in EVERY_KIND.items() if name != "large.f32.mlp.w2.weight"}


def tq3_folder(path: Path, tensors: Tensors, **options: object) -> Path:
    """A compressed checkpoint."""
    tq3.compress(checkpoint(path / "in", tensors), path / "tq3", **options)  # type: ignore[arg-type]
    return path / "tq3"


def restored(path: Path, tq3_checkpoint: Path, **options: object) -> dict[str, Tensor]:
    """The tensors of a restored checkpoint."""
    tq3.restore(tq3_checkpoint, path / "back", **options)  # type: ignore[arg-type]
    return read_tensors(path / "back")


def as_dtype(half: Tensor, dtype: str) -> Tensor:
    """An F16 tensor in another type, by numpy where it is exact, else rounded to nearest even."""
    bits = half.values.view(np.uint32)
    if dtype == "BF16":
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return Tensor(dtype, half.shape, rounded.astype(np.uint16).tobytes())
    return half if dtype == "F16" else tensor(half.values, dtype)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_tensor_has_its_name_shape_and_decoded_values_again(tmp_path, name, bits):
    dtype = DTYPES[name]
    found = restored(tmp_path, tq3_folder(tmp_path, SAFE, bits=bits), dtype=name)
    expected = {n: decoded(t, dtype, bits) for n, t in COMPRESSED.items() if n in SAFE}
    for n, one in FLOATS.items():
        expected[n] = one if one.dtype == "F32" else as_dtype(kept(one), dtype)
    assert_same_tensors(found, expected | OTHERS)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in SAFE.items()}


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("block_bytes", [300, 20_000, 4 * 2**20])
def test_no_backend_number_of_workers_or_block_size_changes_a_byte(
    tmp_path, set_block_bytes, backend, workers, block_bytes
):
    source = tq3_folder(tmp_path, SAFE)
    set_block_bytes(block_bytes)
    options: dict[str, Any] = {"max_shard_size": 20_000, "dtype": "bfloat16"}
    restored(tmp_path, source, workers=workers, backend=backend, **options)
    set_block_bytes(2**30)
    tq3.restore(source, tmp_path / "again", workers=1, backend="numpy", **options)
    assert contents(tmp_path / "back") == contents(tmp_path / "again")


def test_the_folder_is_an_ordinary_checkpoint_again(tmp_path):
    text = '{\r\n\t"b": 1,\r\n\t"a": {"}": "{"}\r\n}\r\n\r\n'
    source = checkpoint(tmp_path / "in", shards=2, config=text)
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "vocab.txt").write_bytes(b"\xff\r\n")
    (source / "readme").write_bytes(b"hello")
    tq3.compress(source, tmp_path / "tq3")
    tq3.restore(tmp_path / "tq3", tmp_path / "back")
    found = contents(tmp_path / "back")
    assert found.pop("model.safetensors")
    assert found == {
        "config.json": text.encode(),
        "tokenizer/vocab.txt": b"\xff\r\n",
        "readme": b"hello",
    }


@pytest.mark.parametrize(
    "text", ["{}", "{ }", '{"a": 1}', '{"a":\n{"quantization_config": null}}\n']
)
@pytest.mark.parametrize("verbatim", [True, False])
def test_config_json_is_the_original_byte_for_byte(tmp_path, text, verbatim):
    source = checkpoint(tmp_path / "in", config=text)
    tq3.compress(source, tmp_path / "tq3", verbatim_config=verbatim)
    tq3.restore(tmp_path / "tq3", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == text


def test_overwriting_a_tq3_folder_leaves_nothing_of_it(tmp_path):
    source = tq3_folder(tmp_path, SAFE)
    tq3.compress(tmp_path / "in", tmp_path / "back", max_shard_size=20_000)
    tq3.restore(source, tmp_path / "back", overwrite=True)
    assert contents(tmp_path / "back").keys() == {"model.safetensors", "config.json"}


def test_kept_tensors_of_the_source_type_go_back_bit_for_bit(tmp_path):
    tensors = {"a.bias": random_tensor(9), "big.bias": spoiled(random_tensor(9), (1,), 1e30)}
    source = tq3_folder(tmp_path, tensors, keep="*", keep_dtype="source")
    assert restored(tmp_path, source) == tensors


def test_values_that_are_not_finite_go_back_as_they_were_kept(tmp_path):
    tensors = {"a.bias": tensor([1.0, float("nan"), float("inf"), -float("inf")])}
    source = tq3_folder(tmp_path, tensors, keep="*", nonfinite="keep")
    for dtype in ("float16", "bfloat16"):
        tq3.restore(source, tmp_path / dtype, dtype=dtype)
        back = read_tensors(tmp_path / dtype)["a.bias"].values
        np.testing.assert_array_equal(back, tensors["a.bias"].values)


@pytest.mark.parametrize("config", [{"num_experts": 3}, {"text_config": {"num_local_experts": 3}}])
def test_a_published_checkpoint_is_restored_with_the_experts_of_its_config(tmp_path, config):
    tensors = {
        "mlp.experts.gate_up_proj": random_tensor(3, 4, 256),
        "mlp.up_proj.weight": random_tensor(4, 256, seed=1),
        "padded.weight": random_tensor(4, 300, seed=2),
    }
    stored: dict[str, Tensor] = {"norm.weight": random_tensor(8, dtype="F16")}
    for name, one in tensors.items():
        stored |= encoded(name, one)
    source = checkpoint(tmp_path / "published", stored, shards=2, config=config)
    published = {"bits": 3, "group_size": 128, "format": "tq3_native"}
    published["orig_in_dims"] = {"padded.weight": 300}
    (source / "tq_config.json").write_text(json.dumps(published))
    found = restored(tmp_path, source)
    assert_same_tensors(
        found,
        {name: decoded(one, "BF16") for name, one in tensors.items()}
        | {"norm.weight": as_dtype(stored["norm.weight"], "BF16")},
    )
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_a_decoded_value_that_does_not_fit_float16_is_refused_with_its_place(tmp_path):
    one = spoiled(random_tensor(6, 256, dtype="F32"), (4, 200), 1e7)
    source = tq3_folder(tmp_path, {"a.weight": one, "b.weight": random_tensor(4, 128)})
    with pytest.raises(BadInput, match="does not fit F16") as caught:
        restored(tmp_path, source, dtype="float16")
    values = decoded(one, "F32").values
    too_large = np.argwhere(np.abs(values) >= 65520)
    assert caught.value.tensor == "a.weight"
    assert any(f"row {row}, column {column}" in str(caught.value) for row, column in too_large)
    assert "float32" in str(caught.value.fix)
    assert visible(tmp_path / "back") == {}


def test_a_kept_value_that_does_not_fit_float16_is_refused_with_its_place(tmp_path):
    tensors = {"a.bias": spoiled(random_tensor(9), (3,), 2.0**30)}
    source = tq3_folder(tmp_path, tensors, keep="*")
    with pytest.raises(BadInput, match=r"1.07374e\+09 at column 3 does not fit F16") as caught:
        restored(tmp_path, source, dtype="float16")
    assert caught.value.tensor == "a.bias"


def test_other_types_are_no_target(tmp_path):
    source = tq3_folder(tmp_path, SAFE)
    with pytest.raises(UsageError, match="dtype") as caught:
        restored(tmp_path, source, dtype="int8")
    assert "bfloat16" in str(caught.value.expected)


def test_an_ordinary_checkpoint_cannot_be_restored(tmp_path):
    with pytest.raises(BadInput, match="not a TQ3 checkpoint") as caught:
        restored(tmp_path, checkpoint(tmp_path / "in"))
    assert "tq3 compress" in str(caught.value.fix)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("size", [0, -5, "nothing"])
def test_a_shard_size_that_is_none_is_refused(tmp_path, size):
    source = tq3_folder(tmp_path, {"a.bias": random_tensor(9)}, keep="*")
    with pytest.raises(UsageError):
        restored(tmp_path, source, max_shard_size=size)


def test_shards_keep_the_limit(tmp_path):
    source = tq3_folder(tmp_path, {f"{i}.weight": random_tensor(4, 128) for i in range(6)})
    tq3.restore(source, tmp_path / "back", max_shard_size=2500)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) == 3
    assert len(read_tensors(tmp_path / "back")) == 6


def test_the_report_says_what_was_restored(tmp_path):
    report = tq3.restore(tq3_folder(tmp_path, SAFE), tmp_path / "back")
    assert (report.restored, report.n_compressed, report.mean_error) == (True, 15, None)
    assert report.n_kept == len(FLOATS) + len(OTHERS)
    assert report.output_bytes == sum(len(t.data) for t in read_tensors(tmp_path / "back").values())
    n_elements = sum(prod(one.shape) for one in SAFE.values())
    assert report.bits_per_weight == pytest.approx(report.output_bytes * 8 / n_elements)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1e-30"])
@pytest.mark.parametrize("columns", [256, 200])
def test_a_norm_that_is_none_is_refused_with_its_place(tmp_path, set_block_bytes, value, columns):
    """Decoded it would give weights that nobody meant."""
    set_block_bytes(400)
    source = tq3_folder(tmp_path, {"a.weight": random_tensor(40, columns)})
    stored = read_tensors(source)
    norms = stored["a.weight.tq_norms"].values.copy()
    norms[31, 1] = float(value)
    spoiled_norms = {"a.weight.tq_norms": tensor(norms, "F32")}
    (source / "model.safetensors").write_bytes(safetensors_bytes(stored | spoiled_norms))
    with pytest.raises(
        BadInput, match=f"not a norm: {float(value):g} at row 31, group 1"
    ) as caught:
        restored(tmp_path, source)
    assert (caught.value.file, caught.value.tensor) == ("model.safetensors", "a.weight.tq_norms")
    assert not (tmp_path / "back" / "config.json").exists()
