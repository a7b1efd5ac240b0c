"""Checkpoints whose codes were chosen under moments: smaller errors of outputs, same format."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from support.calibration.cases import CONTEXT, TOKENS, make_case
from support.codec.moments import feedback_of
from support.models.tq3_folder import read_tensors

import tq3
from tq3.calibration import compressing
from tq3.calibration.calibrate import calibrate
from tq3.codec import calibrated
from tq3.equalization.scaled_source import equalized, factors_of
from tq3.errors import BadInput, UsageError
from tq3.events import follow
from tq3.format.checkpoint import read_checkpoint
from tq3.format.config import parse_tq_config
from tq3.format.files import Origin
from tq3.moments.reading import _differ, open_moments
from tq3.pipelines.compress import compress_checkpoint
from tq3.storage.local import LocalFiles

DOWN = "model.layers.1.mlp.down_proj.weight"


def weights(case, out, name, **options):
    """A tensor of the source as `compress` with these options leaves it."""
    tq3.compress(case.source, out, workers=1, **options)
    restored = out.with_name(f"{out.name}-restored")
    tq3.restore(out, restored, dtype="float32")
    return read_tensors(restored)[name].double().numpy()


def lost(case, found, name):
    """The mean of |(W - W') x|^2 over the tokens of the moments."""
    with open_moments(case.moments) as moments:
        (source,) = moments.readers[name]
        second = moments.block(source, 0, found.shape[1]).astype(float)
    error = found - read_tensors(case.source)[name].double().numpy()
    return float((error @ second * error).sum())


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_less_of_the_outputs_is_lost(llama, tmp_path):
    for name in (DOWN, "model.layers.0.self_attn.q_proj.weight"):
        stem = tmp_path / name
        plain = weights(llama, stem.with_suffix(".plain"), name, norms="float16")
        how: dict[str, Any] = {"norms": "float16", "calibrate": llama.moments}
        calibrated = weights(llama, stem.with_suffix(".calibrated"), name, **how)
        before, after = (lost(llama, each, name) for each in (plain, calibrated))
        assert after < 0.97 * before  # random weights: inputs that are nearly alike


@pytest.mark.parametrize("equalize", [False, True])
def test_bytes_do_not_depend_on_workers_backends_or_blocks(llama, tmp_path, monkeypatch, equalize):
    how: dict[str, Any] = {"calibrate": llama.moments, "group_size": 64, "equalize": equalize}
    tq3.compress(llama.source, tmp_path / "one", workers=1, **how)
    monkeypatch.setattr("tq3.plan.plan.BLOCK_BYTES", 1)
    tq3.compress(llama.source, tmp_path / "three", workers=3, backend="portable", **how)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    found = tq3.verify(tmp_path / "three", source=llama.source)
    assert found.ok
    coded = [line for line in found.comparisons if line.expected]
    assert coded
    assert [line.limit for line in coded] == [2 * (line.expected or 0) for line in coded]


@pytest.mark.slow
def test_stacks_of_experts_have_a_matrix_each(tmp_path):
    case = make_case("qwen3_5_moe", tmp_path)
    stack = "model.language_model.layers.0.mlp.experts.down_proj"
    tq3.compress(case.source, tmp_path / "out", calibrate=case.moments, norms="float16")
    config = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert "mtp" in " ".join(config["tq3"]["calibration"]["without"])
    tq3.restore(tmp_path / "out", tmp_path / "back", dtype="float32")
    found = read_tensors(tmp_path / "back")[stack].double().numpy()
    exact = read_tensors(case.source)[stack].double().numpy()
    tq3.compress(case.source, tmp_path / "plain", norms="float16")
    tq3.restore(tmp_path / "plain", tmp_path / "plain-back", dtype="float32")
    plain = read_tensors(tmp_path / "plain-back")[stack].double().numpy()
    with open_moments(case.moments) as moments:
        inputs = moments.readers[stack]
        assert len(set(inputs)) == len(exact)
        for number, name in enumerate(inputs):
            second = moments.block(name, 0, exact.shape[-1]).astype(float)
            losses = [
                float((error @ second * error).sum())
                for error in (found[number] - exact[number], plain[number] - exact[number])
            ]
            assert losses[0] < 0.97 * losses[1]


def test_moments_are_divided_by_the_factors_of_equalized_columns(llama, tmp_path):
    """As the reference codes the scaled weights under H / (d d'), so they are stored."""
    out = tmp_path / "out"
    tq3.compress(llama.source, out, calibrate=llama.moments, equalize=True, group_size=64)
    config = parse_tq_config((out / "tq_config.json").read_text())
    with LocalFiles(llama.source) as files, open_moments(llama.moments) as moments:
        checkpoint = read_checkpoint(files)
        scaled = equalized(files, checkpoint, config.factors)
        (tensor,) = (each for each in checkpoint.tensors if each.info.name == DOWN)
        words = np.empty(tensor.info.shape, np.uint16)
        scaled.read_into(tensor.file, tensor.offset, words.reshape(-1).view(np.uint8).data)
        factors = factors_of(config.factors[DOWN]).astype(float)
        second = moments.block(moments.readers[DOWN][0], 0, 344) / np.outer(factors, factors)
        damping = moments.damping(moments.readers[DOWN][0])
    assert np.ptp(factors) > 0
    feedback = feedback_of(second, 64, damping)
    packed, _ = calibrated.encode(words, "BF16", 3, 64, feedback, "F32")
    stored = read_tensors(out)[f"{DOWN}.tq_packed"].numpy()
    np.testing.assert_array_equal(stored, packed.reshape(stored.shape))


def test_a_run_is_continued_under_its_own_moments_alone(llama, tmp_path):
    class Enough(Exception):
        pass

    def stop(event):
        if getattr(event, "weights_done", 0):
            raise Enough

    out = tmp_path / "out"
    with pytest.raises(Enough):
        tq3.compress(llama.source, out, calibrate=llama.moments, workers=1, on_event=stop)
    others: tuple[dict[str, Any], ...] = ({}, {"calibrate": other_moments(llama, tmp_path)})
    for other in others:
        with pytest.raises(UsageError, match=r"second moments.*--calibrate"):
            tq3.compress(llama.source, out, **other)
    assert tq3.compress(llama.source, out, calibrate=llama.moments).share_before > 0


def other_moments(case, folder):
    path = folder / "other.safetensors"
    follow(calibrate(case.source, path, tokens=TOKENS // 2, context=CONTEXT))
    return path


def test_a_text_is_sent_through_the_model_once_however_often_the_run_is_stopped(
    llama, tmp_path, monkeypatch
):
    passes = []
    collect = calibrate

    def counted(*arguments, **options):
        run = collect(*arguments, context=CONTEXT, **options)
        passes.append(0)
        found = yield from counting(run)
        return found

    def counting(run):
        while True:
            try:
                event = next(run)
            except StopIteration as end:
                return end.value
            passes[-1] += "layers" in getattr(event, "tensor", "")
            yield event

    monkeypatch.setattr(compressing, "calibrate", counted)
    out, beside = tmp_path / "out", tmp_path / "out.moments.safetensors"

    def fail(*_, **__):
        raise KeyboardInterrupt
        yield

    how: dict[str, Any] = {"calibrate": "random", "calibration_tokens": TOKENS}
    with monkeypatch.context() as patch:
        patch.setattr(compressing, "compress_checkpoint", fail)
        with pytest.raises(KeyboardInterrupt):
            tq3.compress(llama.source, out, **how)
    assert beside.is_file()
    tq3.compress(llama.source, out, **how)
    assert passes == [2, 0]
    assert not beside.exists()
    tq3.compress(llama.source, tmp_path / "same", calibrate=llama.moments)
    assert files_of(out) == files_of(tmp_path / "same")


def test_what_would_be_refused_is_refused_before_the_pass(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "calibrate", lambda *_, **__: pytest.fail("a pass"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="not empty"):
        tq3.compress(llama.source, tmp_path / "full", calibrate="random")
    with pytest.raises(UsageError, match="--calibration-tokens"):
        tq3.compress(llama.source, tmp_path / "x", calibration_tokens=5)
    with pytest.raises(UsageError, match="--calibration-tokens is 0"):
        tq3.compress(llama.source, tmp_path / "x", calibrate="self", calibration_tokens=0)
    for moments in ("random", llama.moments):
        with pytest.raises(UsageError, match="--code trellis for all"):
            tq3.compress(llama.source, tmp_path / "x", calibrate=moments, code="trellis")
    assert not (tmp_path / "x").exists()


def test_moments_of_another_model_are_told_or_refused(llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(llama.source, other)
    (told_of_other,) = tq3.preview(other, calibrate=llama.moments).notices
    assert "moments are those of llama, and this is other" in told_of_other
    assert not tq3.preview(llama.source, calibrate=llama.moments).notices
    case = make_case("qwen3", tmp_path)  # the same shapes, and a head
    told: list[Any] = []
    run = compress_checkpoint(
        case.source, tmp_path / "out", tq3.make_recipe(), moments=llama.moments
    )
    follow(run, told.append)
    assert any("moments are those of llama" in getattr(event, "text", "") for event in told)
    with pytest.raises(BadInput, match="whole groups"), open_moments(llama.moments) as moments:
        moments._tensors = {
            name: type(info)(name, "F32", (2, 172, 172)) for name, info in moments._tensors.items()
        }
        moments.check(next(t for t in located(llama) if t.info.name == DOWN), 128)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (("a/m", "1"), ("a/m", "1"), False),
        (("a/m", "1"), ("a/m", "2"), True),
        (("a/m", "1"), ("m", None), False),  # a folder of that name
        (("a/m", None), ("b/m", None), True),
        (("a/m", "1"), ("n", None), True),
    ],
)
def test_names_and_revisions_tell_models_apart_as_far_as_they_are_known(one, other, differ):
    assert _differ(Origin(*one), Origin(*other)) is differ


def located(case):
    with LocalFiles(case.source) as files:
        return read_checkpoint(files).tensors


def test_codes_that_are_not_the_sources_are_a_fault(llama, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    tq3.compress(llama.source, out, calibrate=llama.moments)
    tensors = read_tensors(llama.source)
    shutil.copytree(llama.source, other)
    for file in other.glob("*.safetensors*"):
        file.unlink()
    tensors[DOWN] = -tensors[DOWN]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = tq3.verify(out, source=other)
    assert [fault.tensor for fault in found.faults] == [DOWN]
    assert found.faults[0].check == "TQ505"


def test_inspect_and_the_card_say_with_what_it_was_calibrated(llama, tmp_path):
    tq3.compress(llama.source, tmp_path / "out", calibrate=llama.moments)
    found = tq3.inspect(tmp_path / "out")
    assert (found.calibration["text"], found.calibration["tokens"]) == ("random", TOKENS)
    assert f"as {TOKENS} tokens drawn at random showed it" in tq3.make_card(tmp_path / "out")
    assert "tq3 compress llama OUT --bits 3 --calibrate random" in tq3.make_card(tmp_path / "out")
    planned = tq3.preview(llama.source, calibrate=llama.moments)
    assert planned.calibration == {
        key: value for key, value in found.calibration.items() if key != "without"
    }


@pytest.mark.parametrize(
    ("values", "complaint"),
    [(np.zeros((344, 344)), "is zero"), (np.diag([-1.0] + [1.0] * 343), "is negative")],
)
def test_moments_of_no_inputs_are_refused(llama, tmp_path, values, complaint):
    path = tmp_path / "x.safetensors"
    raw = bytearray(llama.moments.read_bytes())
    header = int.from_bytes(raw[:8], "little") + 8
    begin, end = json.loads(raw[8:header])[DOWN]["data_offsets"]
    raw[header + begin : header + end] = values.astype("<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=f"{DOWN}.*mean square {complaint}"):
        tq3.compress(llama.source, tmp_path / "out", calibrate=path, workers=1)


def test_moments_that_are_none_are_refused(llama, tmp_path):
    path = tmp_path / "x.safetensors"
    raw = bytearray(llama.moments.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.raises(BadInput, match="not a finite moment"):
        tq3.compress(llama.source, tmp_path / "out", calibrate=path, workers=1)


def test_parts_share_a_file_of_moments_and_join_to_what_one_run_writes(llama, tmp_path):
    how: dict[str, Any] = {"calibrate": llama.moments, "max_shard_size": "200KB"}
    tq3.compress(llama.source, tmp_path / "whole", **how)
    for part in ("1/2", "2/2"):
        tq3.compress(llama.source, tmp_path / "out", part=part, **how)
    tq3.finish(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    with pytest.raises(UsageError, match="moments of its own"):
        tq3.compress(llama.source, tmp_path / "x", part="1/2", calibrate="random")
