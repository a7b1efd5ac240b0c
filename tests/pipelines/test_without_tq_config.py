"""Folders as hosts save them: config.json says what tq_config.json would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, read_tensors, tiny_checkpoint

import tq3
from tq3.errors import BadInput

TENSORS = {"a.weight": random_tensor(4, 300), "layers.0.experts.up": random_tensor(2, 4, 128)}
Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Makes such a folder, with changes to its quantization_config."""

    def make(**changes: object) -> Path:
        folder = tmp_path / "saved"
        tq3.compress(tiny_checkpoint(tmp_path / "source", TENSORS), folder)
        shapes = json.loads((folder / "tq_config.json").read_text())["tq3"]["shapes"]
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= {"tq3": {"shapes": shapes}} | changes
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tq_config.json").unlink()
        (folder / "tq3_manifest.json").unlink()
        return folder

    return make


def test_they_are_verified_inspected_and_restored(saved, tmp_path):
    folder = saved()
    assert tq3.verify(folder, source=tmp_path / "source").ok
    assert {line.name: line.shape for line in tq3.inspect(folder).tensors} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }
    tq3.restore(folder, tmp_path / "back")
    assert {name: tensor.shape for name, tensor in read_tensors(tmp_path / "back").items()} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }
    before, after = (contents(tmp_path / name)["config.json"] for name in ("source", "back"))
    assert json.loads(after) == json.loads(before)


def test_without_the_shapes_there_is_no_checkpoint(saved, tmp_path):
    folder = saved()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["tq3"]
    (folder / "config.json").write_text(json.dumps(config))
    assert [fault.check for fault in tq3.verify(folder).faults] == ["TQ102"]
    with pytest.raises(BadInput, match="not a TQ3 checkpoint"):
        tq3.restore(folder, tmp_path / "back")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bits": 5}, "bad bits .*found 5"),
        ({"format": "tq9"}, "unknown format .*found tq9"),
        ({"tq3": {"format_version": 2}}, "written by a newer tq3 .*pip install -U tq3"),
        ({"tq3": 7}, "tq3 has the wrong type"),
        ({"tq3": {"shapes": {"a.weight": [1200]}}}, "tensor 'a.weight': .*not a shape"),
    ],
    ids=str,
)
def test_what_is_wrong_there_is_said_of_config_json(saved, changes, message, tmp_path):
    folder = saved(**changes)
    with pytest.raises(BadInput, match=f"^config.json: .*{message}"):
        tq3.restore(folder, tmp_path / "back")
    (fault,) = tq3.verify(folder).faults
    assert (fault.check, fault.file) == ("TQ103", "config.json")


def test_an_unfinished_run_over_one_is_no_checkpoint(saved, tmp_path):
    folder = saved()
    (folder / ".tq3.part").mkdir()
    with pytest.raises(BadInput, match="an unfinished run"):
        tq3.restore(folder, tmp_path / "back")
    assert [fault.check for fault in tq3.verify(folder).faults] == ["TQ101"]
