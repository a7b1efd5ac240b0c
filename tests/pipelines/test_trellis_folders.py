"""A checkpoint of trellis codes: made, described, verified, restored, and refused by hosts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.factories import Tensor, llama_tensors, read_tensors, tiny_checkpoint

import tq3
from tq3.codec import trellis
from tq3.errors import BadInput, UsageError
from tq3.format.config import group_of
from tq3.format.layout import TRELLIS

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("trellis")
    source = tiny_checkpoint(path / "source", llama_tensors())
    report = tq3.compress(source, path / "out", code="trellis")
    return source, path / "out", report


def test_each_compressed_tensor_has_trellis_codes_under_a_name_of_their_own(folders):
    source, out, _ = folders
    stored, original = read_tensors(out), read_tensors(source)[NAME]
    assert not any(name.endswith(".tq_packed") for name in stored)
    packed, norms = trellis.encode(original.words, original.dtype, 3, 128, "search")
    assert stored[NAME + TRELLIS].data == packed.tobytes()
    assert stored[NAME + ".tq_norms"].data == norms.tobytes()


def test_both_configs_name_a_format_that_readers_of_levels_refuse(folders):
    _, out, _ = folders
    declared = json.loads((out / "config.json").read_text())["quantization_config"]
    assert declared["format"] == "tq3_trellis"
    assert json.loads((out / "tq_config.json").read_text())["format"] == "tq3_trellis"
    with pytest.raises(BadInput, match=r"a trellis.*packed yet; `tq3 restore`"):
        group_of(declared)


def test_it_is_sound_and_its_error_is_what_a_trellis_makes(folders):
    source, out, report = folders
    assert 0.017 < report.mean_error < 0.021
    verdict = tq3.verify(out, source=source)
    assert verdict.ok, verdict.faults
    lines = [line for line in verdict.comparisons if line.expected]
    assert lines
    assert all(line.expected == pytest.approx(0.0191) for line in lines)


def test_a_changed_code_is_found(folders, tmp_path):
    source, out, _ = folders
    changed = tmp_path / "out"
    changed.mkdir()
    for file in out.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    shard = changed / "model.safetensors"
    raw = bytearray(shard.read_bytes())
    packed = read_tensors(out)[NAME + TRELLIS].data
    start = bytes(raw).index(packed)
    raw[start : start + 48] = bytes(byte ^ 0x55 for byte in packed[:48])
    shard.write_bytes(raw)
    (changed / "tq3_manifest.json").unlink()
    verdict = tq3.verify(changed, source=source)
    assert "TQ505" in {fault.check for fault in verdict.faults}


def test_it_is_restored_to_what_its_codes_say(folders, tmp_path):
    _, out, _ = folders
    tq3.restore(out, tmp_path / "back", dtype="float32")
    stored, back = read_tensors(out), read_tensors(tmp_path / "back")[NAME]
    codes, norms = stored[NAME + TRELLIS], stored[NAME + ".tq_norms"]
    packed = np.frombuffer(codes.data, np.uint8).reshape(codes.shape)
    gains = np.frombuffer(norms.data, np.float32).reshape(norms.shape)
    expected = trellis.decode(packed, gains, 3, 128, back.shape[1])
    assert back.data == np.ascontiguousarray(expected).tobytes()


def test_it_is_described_with_what_others_make_of_it(folders):
    _, out, _ = folders
    described = tq3.inspect(out)
    assert (described.code, described.format) == ("trellis", "tq3_trellis")
    assert "codes are those of a trellis, not levels" in described.choice.obstacles
    assert described.to_dict()["code"] == "trellis"


def test_two_bits_stay_levels(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", llama_tensors())
    tq3.compress(source, tmp_path / "out", code="trellis", sensitive_bits=2, norms="float16")
    stored = read_tensors(tmp_path / "out")
    assert NAME + ".tq_packed" in stored
    assert "model.layers.1.mlp.up_proj.weight.tq_trellis" in stored
    assert tq3.verify(tmp_path / "out", source=source).ok


def test_a_checkpoint_of_two_bits_alone_is_one_of_levels(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", llama_tensors())
    tq3.compress(source, tmp_path / "out", code="trellis", bits=2)
    out = tmp_path / "out"
    declared = json.loads((out / "config.json").read_text())["quantization_config"]
    recorded = json.loads((out / "tq_config.json").read_text())
    assert declared["format"] == recorded["format"] == "tq3_native"
    planned, stored = tq3.preview(source, code="trellis", bits=2), tq3.inspect(out)
    for described in (planned, stored):
        assert (described.code, described.choice.obstacles) == ("scalar", ())
    assert group_of(declared) == 128
    assert tq3.verify(out, source=source).ok


def test_our_card_does_not_promise_hosts_and_the_users_can_say_so(folders, tmp_path):
    _, out, _ = folders
    with pytest.raises(UsageError, match="no host serves codes of a trellis"):
        tq3.make_card(out)
    template = tmp_path / "mine.md"
    template.write_text("$metadata\n\n$readers\n")
    assert "No host can load it yet: `tq3 restore`" in tq3.make_card(out, template=template)


@pytest.mark.parametrize(
    ("change", "message", "check"),
    [
        (lambda names: names.pop(NAME + ".tq_norms"), "its .tq_norms is missing", "TQ205"),
        (lambda names: names.pop(NAME + TRELLIS), "its .tq_packed is missing", "TQ205"),
        (
            lambda names: names.update({NAME + ".tq_packed": names[NAME + TRELLIS]}),
            "stored twice: .tq_packed and .tq_trellis",
            "TQ206",
        ),
    ],
)
def test_a_broken_pair_is_refused(folders, tmp_path, change, message, check):
    _, out, _ = folders
    tensors = read_tensors(out)
    change(tensors)
    broken = tiny_checkpoint(tmp_path / "broken", tensors)
    (broken / "tq_config.json").write_text((out / "tq_config.json").read_text())
    with pytest.raises(BadInput, match=message):
        tq3.restore(broken, tmp_path / "back")
    assert check in {fault.check for fault in tq3.verify(broken, structure=True).faults}


def test_a_width_that_no_trellis_has_is_refused(folders, tmp_path):
    _, out, _ = folders
    tensors = read_tensors(out)
    codes = tensors[NAME + TRELLIS]
    narrow = Tensor("U8", (codes.shape[0], 32), codes.data[: codes.shape[0] * 32])
    broken = tiny_checkpoint(tmp_path / "broken", tensors | {NAME + TRELLIS: narrow})
    (broken / "tq_config.json").write_text((out / "tq_config.json").read_text())
    with pytest.raises(BadInput, match="down_proj"):
        tq3.restore(broken, tmp_path / "back")
