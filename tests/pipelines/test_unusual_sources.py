"""Sources whose files or config.json are unusual, from the folder to the checkpoint and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factories import contents, llama_tensors, random_tensor, read_tensors, tiny_checkpoint

import tq3
from tq3.events import Notice

INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated.safetensors.index.json"


def sharded(folder: Path, stem: str = "model") -> Path:
    """A tiny model in two shards of this name, and their index."""
    tiny_checkpoint(folder, llama_tensors(), shards=2)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).unlink()
    for name in set(weight_map.values()):
        (folder / name).rename(folder / name.replace("model", stem))
    named = {tensor: file.replace("model", stem) for tensor, file in weight_map.items()}
    text = json.dumps({"weight_map": named})
    (folder / f"{stem}.safetensors.index.json").write_text(text)
    return folder


def test_an_index_of_another_name_is_no_weight_that_stays_behind(tmp_path):
    source = sharded(tmp_path / "in", "consolidated")
    report = tq3.compress(source, tmp_path / "out")
    assert report.left_out == {}
    assert CONSOLIDATED not in contents(tmp_path / "out")
    usual = tiny_checkpoint(tmp_path / "usual", llama_tensors())
    tq3.compress(usual, tmp_path / "usual-out")
    assert read_tensors(tmp_path / "out") == read_tensors(tmp_path / "usual-out")
    assert tq3.verify(tmp_path / "out", source=source).ok


def test_a_tq3_checkpoint_whose_index_has_another_name_is_read_by_every_command(tmp_path):
    tq3.compress(sharded(tmp_path / "in"), tmp_path / "out", max_shard_size=60_000)
    out = tmp_path / "out"
    (out / "tq3_manifest.json").unlink()
    config = json.loads((out / "tq_config.json").read_text())
    del config["tq3"]["writer"]
    (out / "tq_config.json").write_text(json.dumps(config))
    (out / INDEX).rename(out / CONSOLIDATED)
    assert tq3.inspect(out).n_compressed == 6
    assert tq3.verify(out).faults == ()
    tq3.restore(out, tmp_path / "back")
    assert CONSOLIDATED not in contents(tmp_path / "back")


def test_that_one_of_two_copies_was_taken_is_a_notice_of_compress_and_of_inspect(tmp_path):
    source = sharded(tmp_path / "in")
    tiny_checkpoint(tmp_path / "alone", llama_tensors())
    (tmp_path / "alone" / "model.safetensors").rename(source / "model.safetensors")
    events: list[object] = []
    tq3.compress(source, tmp_path / "out", equalize=False, on_event=events.append)
    (notice,) = [event.text for event in events if isinstance(event, Notice)]
    assert notice.startswith("model.safetensors is taken")
    assert notice in tq3.inspect(source).notices


@pytest.mark.parametrize("nothing", ["null", "{}", '{"quant_method": null}'])
@pytest.mark.parametrize("verbatim", [True, False])
def test_a_quantization_config_that_says_nothing_is_none(tmp_path, nothing, verbatim):
    """Written by some versions of Transformers; hosts must still recognise the result."""
    text = f'{{"quantization_config": {nothing}, "a": 1}}'
    source = tiny_checkpoint(tmp_path / "in", config=text)
    tq3.compress(source, tmp_path / "out", verbatim_config=verbatim)
    written = (tmp_path / "out" / "config.json").read_text()
    if verbatim:
        assert written == text
    else:
        assert json.loads(written)["quantization_config"]["quant_method"] == "turboquant"
    assert tq3.verify(tmp_path / "out", source=source).ok


def test_narrow_matrices_stay_as_they_are_and_the_output_is_not_larger_for_them(tmp_path):
    tensors = {"up.weight": random_tensor(256, 128), "narrow.weight": random_tensor(4096, 16)}
    report = tq3.compress(tiny_checkpoint(tmp_path / "in", tensors), tmp_path / "out")
    assert report.n_kept == 1
    assert report.output_bytes < report.source_bytes
    (line,) = [each for each in tq3.inspect(tmp_path / "out").tensors if each.bits is None]
    assert "would not become smaller" in line.reason
