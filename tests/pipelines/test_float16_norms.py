"""Norms of half the size, from compress to restore; what F16 can't hold keeps F32, and says why."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.factories import (
    Tensor,
    contents,
    mixed_tensors,
    of_another_writer,
    random_tensor,
    read_tensors,
    spoiled,
    tiny_checkpoint,
)
from support.pipelines.interrupting import BLOCK_BYTES, SHARD_BYTES, counted_blocks, end_after
from support.pipelines.kinds import EVERY_KIND, assert_same_tensors, compressed_output
from support.pipelines.spoiling import change_tensors, changed_bytes

import tq3
from tq3.codec import reference
from tq3.events import Event, Notice

# Their norms are 1e18 times ten, and no normal number of F16.
UNFIT = {"large.f32.mlp.w2.weight": "large", "tiny.f32.mlp.w2.weight": "tiny"}


def with_half_norms(tensors: dict[str, Tensor], *full: str) -> dict[str, Tensor]:
    """The same checkpoint with norms rounded by numpy, but for those of the tensors `full`."""

    def half(name: str, one: Tensor) -> Tensor:
        stem = name.removesuffix(".tq_norms")
        if stem in (name, *full):
            return one
        return Tensor("F16", one.shape, one.values.astype(np.float16).tobytes())

    return {name: half(name, one) for name, one in tensors.items()}


def with_one_loud_group(shape: tuple[int, int], value: float, seed: int) -> Tensor:
    """A value whose group has a norm beyond the range of F16."""
    return spoiled(random_tensor(*shape, dtype="F32", seed=seed), (3, 5), value)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def every_kind(tmp_path: Path, events: list[Event]) -> Path:
    """Compressed with half-size norms."""
    source = tiny_checkpoint(tmp_path / "in", EVERY_KIND, config={"num_experts": 3})
    tq3.compress(source, tmp_path / "out", norms="float16", equalize=False, on_event=events.append)
    return tmp_path / "out"


def recorded(path: Path) -> dict[str, str]:
    config = json.loads((path / "tq_config.json").read_text())
    reasons: dict[str, str] = config["tq3"]["float32_norms"]
    return reasons


def test_norms_are_those_of_the_reference_rounded_and_what_does_not_fit_stays(every_kind, events):
    expected = with_half_norms(compressed_output(), *UNFIT)
    assert_same_tensors(read_tensors(every_kind), expected)
    assert recorded(every_kind).keys() == UNFIT.keys()
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == [f"{name} {why}" for name, why in recorded(every_kind).items()]
    assert all("at row 0, group 0 is beyond F16's range" in text for text in notices)


@pytest.mark.parametrize(("group", "share"), [(32, 0.125), (128, 0.0385)])
def test_a_file_is_smaller_by_two_bytes_a_group(tmp_path, group, share):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(64, 256)})
    full, half = (
        tq3.compress(source, tmp_path / norms, norms=norms, group_size=group).output_bytes
        for norms in ("float32", "float16")
    )
    assert full - half == 2 * 64 * 256 // group
    assert 1 - half / full == pytest.approx(share, abs=1e-4)


def test_restoring_decodes_the_rounded_norms(every_kind, tmp_path):
    tq3.restore(every_kind, tmp_path / "restored", dtype="float32")
    stored, restored = read_tensors(every_kind), read_tensors(tmp_path / "restored")
    for name, source in EVERY_KIND.items():
        if f"{name}.tq_norms" in stored:
            codes, norms = stored[f"{name}.tq_packed"], stored[f"{name}.tq_norms"]
            values = reference.decode(
                np.frombuffer(codes.data, np.uint8).reshape(codes.shape),
                norms.values,
                3,
                128,
                source.shape[-1],
            )
            assert restored[name].data == np.ascontiguousarray(values).tobytes(), name


def test_it_is_sound_also_beside_its_source(every_kind, tmp_path):
    result = tq3.verify(every_kind, source=tmp_path / "in")
    assert result.ok, result.faults
    assert len(result.comparisons) == len(EVERY_KIND)


def test_the_error_is_that_of_the_norms_as_they_are_stored(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(4, 128)})
    report = tq3.compress(source, tmp_path / "out", norms="float16")
    (line,) = tq3.verify(tmp_path / "out", source=source).comparisons
    assert report.mean_error == pytest.approx(line.error, rel=1e-6)
    full = tq3.compress(source, tmp_path / "full")
    assert report.mean_error != full.mean_error
    assert report.mean_error == pytest.approx(full.mean_error, rel=1e-4)


def test_inspect_tells_sizes_types_and_reasons_and_the_plan_the_same_sizes(tmp_path):
    tensors = {"a.weight": random_tensor(4, 128), "b.weight": random_tensor(4, 128)}
    source = tiny_checkpoint(tmp_path / "in", tensors)
    recipe = tq3.Recipe(norms="float16")
    tq3.compress(source, tmp_path / "out", norms="float16")
    for description in (tq3.preview(source, recipe=recipe), tq3.inspect(tmp_path / "out")):
        assert description.norm_dtypes == {"F16": 2}
        assert description.bits_per_weight == 3.125
    tensors["b.weight"] = with_one_loud_group((4, 128), 1e6, 1)
    tq3.compress(tiny_checkpoint(source, tensors), tmp_path / "mixed", norms="float16")
    mixed = tq3.inspect(tmp_path / "mixed")
    assert mixed.norm_dtypes == {"F32": 1, "F16": 1}
    assert "keeps F32 norms: the norm 1" in mixed.tensors[1].reason
    assert mixed.to_dict()["tensors"][0]["norm_dtype"] == "F16"


@pytest.mark.parametrize("block_bytes", [1, 600, 2**20])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_norm_that_is_named_depends_on_neither_blocks_nor_workers(
    tmp_path, set_block_bytes, block_bytes, workers
):
    set_block_bytes(block_bytes)
    one = spoiled(with_one_loud_group((8, 256), 7e5, 0), (6, 200), 1e9)
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": one})
    tq3.compress(source, tmp_path / "out", norms="float16", workers=workers)
    (why,) = recorded(tmp_path / "out").values()
    assert "at row 3, group 0" in why


def test_a_tensor_with_a_nan_is_kept_whatever_its_norms(tmp_path):
    one = spoiled(with_one_loud_group((4, 128), 1e6, 0), (1, 1), float("nan"))
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": one})
    tq3.compress(source, tmp_path / "out", norms="float16", nonfinite="keep")
    assert read_tensors(tmp_path / "out") == {"a.weight": one}
    assert recorded(tmp_path / "out") == {}


def bad(value: float):
    """Put this in place of a norm."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["a.weight.tq_norms"] = changed_bytes(tensors["a.weight.tq_norms"], 7, value, "<f2")

    return spoil


BAD = {"nan": ("TQ301", np.nan), "inf": ("TQ301", np.inf), "-0.5": ("TQ302", -0.5)}


@pytest.mark.parametrize(("text", "case"), BAD.items())
def test_what_is_no_norm_is_found_and_not_decoded(tmp_path, text, case):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(6, 256)})
    tq3.compress(source, tmp_path / "out", norms="float16")
    path = of_another_writer(tmp_path / "out")
    check, value = case
    change_tensors(path, bad(value))
    (fault,) = tq3.verify(path).faults
    assert (fault.check, fault.found) == (check, text)
    assert "row 3, group 1" in fault.message
    with pytest.raises(tq3.BadInput, match=f"not a norm: {text} at row 3, group 1"):
        tq3.restore(path, tmp_path / "restored")


def test_norms_of_another_type_are_a_contradiction(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(6, 256)})
    tq3.compress(source, tmp_path / "out", norms="float16")
    path = of_another_writer(tmp_path / "out")

    def relabel(tensors: dict[str, Tensor]) -> None:
        tensors["a.weight.tq_norms"] = tensors["a.weight.tq_norms"]._replace(dtype="BF16")

    change_tensors(path, relabel)
    assert [fault.check for fault in tq3.verify(path).faults] == ["TQ207"]
    with pytest.raises(tq3.BadInput, match="contradict each other"):
        tq3.restore(path, tmp_path / "restored")


def test_a_run_that_learned_of_a_norm_goes_on_to_the_same_bytes(tmp_path, set_block_bytes):
    set_block_bytes(BLOCK_BYTES)
    tensors = mixed_tensors()
    for i in (0, 2):
        tensors[f"layers.{i}.up.weight"] = with_one_loud_group((40, 128), 1e7, i)
    source = tiny_checkpoint(tmp_path / "in", tensors)
    compress = partial(tq3.compress, source, norms="float16", max_shard_size=SHARD_BYTES, workers=1)
    with counted_blocks() as blocks:
        compress(tmp_path / "whole")
    recipe = tq3.Recipe(norms="float16", max_shard_bytes=SHARD_BYTES)
    for n_events in range(10, len(blocks), 13):
        out = tmp_path / f"{n_events}"
        end_after(tq3.compress_checkpoint(source, out, recipe, workers=1), n_events)
        compress(out)
        assert contents(out) == contents(tmp_path / "whole")
