"""No number in tq_config.json is believed that the weights contradict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.factories import of_another_writer, random_tensor, tiny_checkpoint

import tq3
from tq3.errors import BadInput, Tq3Error
from tq3.format.checkpoint import read_checkpoint
from tq3.format.config import FILE_NAME
from tq3.plan.plan import Plan
from tq3.plan.restoring import plan_restoration, read_tq_config
from tq3.storage.local import LocalFiles

OTHERS = (0, 1, 2, 3, 4, 64, 99, 127, 129, 256, 99_999, 2**31, 2**62, 2**63, 2**70, -1, 0.5, 3.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all kinds whose shape no header tells: padded, of experts, of experts and padded."""
    tensors = {
        "model.layers.0.mlp.up_proj.weight": random_tensor(128, 256),
        "model.layers.0.mlp.down_proj.weight": random_tensor(128, 200),
        "model.layers.0.mlp.experts.gate_up_proj": random_tensor(2, 128, 256),
        "model.layers.0.mlp.experts.down_proj": random_tensor(2, 128, 130),
        "model.layers.0.input_layernorm.weight": random_tensor(256),
    }
    return tiny_checkpoint(tmp_path_factory.mktemp("in"), tensors, config={"num_experts": 2})


@pytest.fixture(params=["ours", "another writer's"])
def folder(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    tq3.compress(source, tmp_path / "out", sensitive_bits=4)
    ours = request.param == "ours"
    return tmp_path / "out" if ours else of_another_writer(tmp_path / "out")


def plan(folder: Path) -> Plan:
    """What restore would write: with the stored bytes it decides every byte of the output."""
    with LocalFiles(folder) as files:
        checkpoint = read_checkpoint(files)
        config = read_tq_config(files, checkpoint.config)
        return plan_restoration(checkpoint, config, "BF16", 2**30)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a number stands in JSON."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


def with_number(text: str, path: tuple[str | int, ...], number: object) -> str:
    """The JSON with another number at one place."""
    whole = json.loads(text)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = number
    return json.dumps(whole)


def test_another_number_is_refused_or_changes_no_byte_of_what_is_restored(folder):
    file = folder / FILE_NAME
    text, before = file.read_text(), plan(folder)
    refused = {}
    for path in places(json.loads(text)):
        for number in OTHERS:
            file.write_text(with_number(text, path, number))
            try:
                assert plan(folder) == before, (path, number)
            except BadInput as error:
                refused[path] = str(error)
    if "another" not in json.loads(text)["tq3"]["writer"]:
        names = {path[-2] if isinstance(path[-1], int) else path[-1] for path in refused}
        assert {"bits", "group_size", "quantizer_seed", "compressed_layers"} < names
    assert any(path[0] == "orig_in_dims" for path in refused)
    assert any("shapes" in path for path in refused)


def test_no_number_is_too_much_for_any_command(folder):
    file = folder / FILE_NAME
    text = file.read_text()
    for path in places(json.loads(text)):
        for number in OTHERS[::2]:
            file.write_text(with_number(text, path, number))
            for command in (tq3.inspect, tq3.make_card):
                try:
                    command(folder)
                except Tq3Error as error:
                    assert error.exit_code == BadInput.exit_code, (path, number)
            tq3.verify(folder, structure=True)


def test_columns_that_contradict_the_stored_shape_are_refused_and_found(folder, tmp_path):
    file = folder / FILE_NAME
    (name, *_) = json.loads(file.read_text())["orig_in_dims"]
    file.write_text(with_number(file.read_text(), ("orig_in_dims", name), 99_999))
    words = r"contradict each other \(found codes .*, norms .*, columns 99999 and "
    with pytest.raises(BadInput, match=words):
        tq3.restore(folder, tmp_path / "back")
    faults = tq3.verify(folder, structure=True).faults
    assert ("TQ207", f"{name}.tq_packed") in {(fault.check, fault.tensor) for fault in faults}
