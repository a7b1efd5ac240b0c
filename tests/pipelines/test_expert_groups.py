"""Fused experts whose rows are inputs: coded by outputs, and given back as they were."""

from __future__ import annotations

import numpy as np
import pytest
from support.dequantization.quantised import around, fp4
from support.factories import (
    contents,
    random_tensor,
    read_tensors,
    spoiled,
    tensor,
    tiny_checkpoint,
)
from support.pipelines.interrupting import BLOCK_BYTES, Stopped, counted_blocks

import tq3
from tq3.errors import BadInput
from tq3.plan.plan import Task

EXPERTS = "model.layers.0.mlp.experts"
GATE_UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
CONFIG = {"model_type": "gpt_oss", "hidden_size": 144, "num_local_experts": 3}
# Rows are padded: of the hidden channels as outputs, and of the others as inputs.
TENSORS = {
    GATE_UP: random_tensor(3, 144, 256, seed=1),
    f"{GATE_UP}_bias": random_tensor(3, 256, seed=2),
    DOWN: random_tensor(3, 128, 144, seed=3),
    "model.norm.weight": random_tensor(144, seed=4),
}
BLOCKS = [
    fp4(GATE_UP, (3, 256, 160), "_blocks", "_scales", "U8", "U8"),
    fp4(DOWN, (3, 160, 128), "_blocks", "_scales", "U8", "U8"),
]
MXFP4 = {**CONFIG, "hidden_size": 160, "quantization_config": {"quant_method": "mxfp4"}}


def made(path, name="source", tensors=TENSORS, config=CONFIG):
    return tiny_checkpoint(path / name, tensors, config=config)


def by_inputs(source, out, **options):
    return tq3.compress(source, out, expert_groups="inputs", **options)


def transposed(one):
    return tensor(one.values.transpose(0, 2, 1), one.dtype)


def parts(folder, name):
    found = read_tensors(folder)
    return found[f"{name}.tq_packed"], found[f"{name}.tq_norms"]


def test_codes_are_those_of_the_transposed_stack_and_norms_say_so(tmp_path):
    by_inputs(made(tmp_path), tmp_path / "out")
    other = {name: transposed(one) if one.shape[2:] else one for name, one in TENSORS.items()}
    tq3.compress(made(tmp_path, "other", other, {}), tmp_path / "same")
    for name, rows in ((GATE_UP, 256), (DOWN, 144)):
        (packed, norms), (same, flat) = (parts(tmp_path / out, name) for out in ("out", "same"))
        assert packed == same
        assert norms.data == flat.data
        assert (norms.shape[:2], flat.shape[:1]) == ((3, rows), (3 * rows,))


def test_restore_gives_the_source_back(tmp_path):
    """As exactly as the transposed stack is restored."""
    source = made(tmp_path)
    by_inputs(source, tmp_path / "out")
    other = {name: transposed(one) if one.shape[2:] else one for name, one in TENSORS.items()}
    tq3.compress(made(tmp_path, "other", other, {}), tmp_path / "same")
    for dtype in ("bfloat16", "float32"):
        for out in ("out", "same"):
            tq3.restore(tmp_path / out, tmp_path / f"{out} {dtype}", dtype=dtype)
        found, same = (read_tensors(tmp_path / f"{out} {dtype}") for out in ("out", "same"))
        for name, one in TENSORS.items():
            assert found[name].shape == one.shape
            assert found[name] == (transposed(same[name]) if one.shape[2:] else same[name])


def test_verify_finds_it_sound_and_finds_another_source(tmp_path):
    source = made(tmp_path)
    by_inputs(source, tmp_path / "out")
    assert tq3.verify(tmp_path / "out", source=source).faults == ()
    other = {**TENSORS, DOWN: random_tensor(3, 128, 144, seed=9)}
    (fault,) = tq3.verify(tmp_path / "out", source=made(tmp_path, "b", other)).faults
    assert fault.tensor == DOWN


def test_published_is_what_it_was(tmp_path):
    """Without the option codes are those of the rows as they are stored, and a notice says it."""
    report = tq3.compress(made(tmp_path), tmp_path / "out")
    tq3.compress(made(tmp_path, "other", config={}), tmp_path / "same")
    one, other = (contents(tmp_path / out) for out in ("out", "same"))
    assert one["model.safetensors"] == other["model.safetensors"]
    assert tq3.verify(tmp_path / "out", source=tmp_path / "source").faults == ()
    assert report.n_compressed == 2


@pytest.mark.parametrize("groups", ["stored", "inputs"])
def test_blocks_of_gpt_oss_are_coded_as_they_lie_and_restored_as_hosts_have_them(tmp_path, groups):
    source = tiny_checkpoint(tmp_path / "source", around(BLOCKS), 2, MXFP4)
    tq3.compress(source, tmp_path / "out", expert_groups=groups)
    plain = {block.name: tensor(block.values, "F32") for block in BLOCKS}
    tq3.compress(made(tmp_path, "plain", plain, {}), tmp_path / "same")
    tq3.restore(tmp_path / "out", tmp_path / "restored", dtype="float32")
    tq3.restore(tmp_path / "same", tmp_path / "same restored", dtype="float32")
    found, same = read_tensors(tmp_path / "restored"), read_tensors(tmp_path / "same restored")
    for block in BLOCKS:
        assert parts(tmp_path / "out", block.name)[0] == parts(tmp_path / "same", block.name)[0]
        assert found[block.name] == transposed(same[block.name])
    assert tq3.verify(tmp_path / "out", source=source).faults == ()


def test_kept_blocks_are_stored_as_hosts_have_them(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", around(BLOCKS), 2, MXFP4)
    tq3.compress(source, tmp_path / "out", keep="*gate_up*", keep_dtype="source")
    kept = read_tensors(tmp_path / "out")[GATE_UP]
    assert kept.dtype == "BF16"
    np.testing.assert_array_equal(kept.values, BLOCKS[0].values.transpose(0, 2, 1))
    assert tq3.verify(tmp_path / "out", source=source).faults == ()


def test_a_stack_that_is_not_finite_is_kept_as_it_was(tmp_path):
    spoilt = {**TENSORS, DOWN: spoiled(TENSORS[DOWN], (2, 5, 7), np.nan)}
    source = made(tmp_path, tensors=spoilt)
    with pytest.raises(BadInput, match=r"down_proj.*nan at index 2, row 7, column 5"):
        by_inputs(source, tmp_path / "out")
    by_inputs(source, tmp_path / "out", nonfinite="keep", overwrite=True)
    assert read_tensors(tmp_path / "out")[DOWN].data == spoilt[DOWN].data


def test_norms_that_can_be_none_and_values_that_do_not_fit_are_refused_by_restore(tmp_path):
    large = {**TENSORS, DOWN: tensor(TENSORS[DOWN].values * 2.0**24)}
    by_inputs(made(tmp_path, tensors=large), tmp_path / "out")
    with pytest.raises(
        BadInput, match=r"down_proj.*index \d, row \d+, column \d+ does not fit F16"
    ):
        tq3.restore(tmp_path / "out", tmp_path / "back", dtype="float16")
    tensors = read_tensors(tmp_path / "out")
    name = f"{DOWN}.tq_norms"
    broken = {**tensors, name: spoiled(tensors[name], (1, 3, 0), -1)}
    tiny_checkpoint(tmp_path / "out", broken, config=None)
    with pytest.raises(BadInput, match="not a norm: -1 at row 147, group 0"):
        tq3.restore(tmp_path / "out", tmp_path / "back")


def test_it_is_restored_without_its_record_of_shapes(tmp_path):
    """Norms say how many experts there are; without padding nothing else is needed."""
    even = {GATE_UP: random_tensor(3, 128, 256, seed=1), DOWN: random_tensor(3, 128, 128, seed=2)}
    source = made(tmp_path, tensors=even, config={**CONFIG, "hidden_size": 128})
    by_inputs(source, tmp_path / "out")
    record = tmp_path / "out" / "tq_config.json"
    record.write_text('{"bits": 3, "group_size": 128, "format": "tq3_native"}')
    tq3.restore(tmp_path / "out", tmp_path / "back")
    found = read_tensors(tmp_path / "back")
    assert {name: one.shape for name, one in found.items()} == {n: t.shape for n, t in even.items()}


def test_runs_that_were_stopped_are_continued_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Task.blocks, "__defaults__", (BLOCK_BYTES * 10,))
    source = made(tmp_path)

    def restore(out, to):
        return tq3.restore(tmp_path / out, tmp_path / to)

    for run, whole, stopped in (
        (lambda to: by_inputs(source, tmp_path / to), "whole", "out"),
        (lambda to: restore("whole", to), "restored whole", "restored"),
    ):
        with counted_blocks() as blocks:
            run(whole)
        with counted_blocks(len(blocks) // 2), pytest.raises(Stopped):
            run(stopped)
        with counted_blocks() as left:
            run(stopped)
        assert 0 < len(left) < len(blocks)
        assert contents(tmp_path / stopped) == contents(tmp_path / whole)
    with counted_blocks(1), pytest.raises(Stopped):
        by_inputs(source, tmp_path / "other")
    with pytest.raises(
        tq3.UsageError, match="--expert-groups inputs became --expert-groups stored"
    ):
        tq3.compress(source, tmp_path / "other")
