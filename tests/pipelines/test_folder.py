"""What lies beside the tensors: side files, config.json, tq_config.json, the model's identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, hub_snapshot, random_tensor, tiny_checkpoint

import tq3
from tq3.errors import BadInput, StorageError, UsageError
from tq3.events import Event, Planned
from tq3.format.recipe import Recipe
from tq3.format.recognition import mark


def config_of(folder: Path) -> Any:
    """tq_config.json."""
    return json.loads((folder / "tq_config.json").read_text())


def add(folder: Path, **files: str) -> Path:
    """More files; two underscores stand for a slash, one in front for a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_everything_but_weights_git_and_caches_travels_along(tmp_path):
    source = add(
        tiny_checkpoint(tmp_path / "in"),
        tokenizerDOTjson="{}",
        sub__notes="n",
        pytorch_modelDOTbin="w",
        DOTgitattributes="g",
        onnx__modelDOTonnx="o",
        onnx__readme="r",
    )
    report = tq3.compress(source, tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {
        *("model.safetensors", "config.json", "tokenizer.json", "sub/notes"),
        *("tq_config.json", "tq3_manifest.json"),
    }
    assert contents(tmp_path / "out")["tokenizer.json"] == b"{}"
    assert report.left_out.keys() == {
        *("pytorch_model.bin", ".gitattributes", "onnx/model.onnx", "onnx/readme"),
    }


def test_the_sources_card_travels_under_a_name_of_its_own_and_back(tmp_path):
    source = add(tiny_checkpoint(tmp_path / "in"), READMEDOTmd="# The source")
    tq3.compress(source, tmp_path / "out")
    assert (tmp_path / "out" / "README.source.md").read_text() == "# The source"
    assert not (tmp_path / "out" / "README.md").exists()
    (tmp_path / "out" / "README.md").write_text("# The 3-bit one")
    assert tq3.verify(tmp_path / "out").ok
    report = tq3.restore(tmp_path / "out", tmp_path / "restored")
    assert (tmp_path / "restored" / "README.md").read_text() == "# The source"
    assert not (tmp_path / "restored" / "README.source.md").exists()
    assert report.left_out == {"README.md": "README.source.md takes its name"}


def test_the_measured_error_is_recorded_and_the_same_for_every_backend_and_worker(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    report = tq3.compress(source, tmp_path / "out", workers=3)
    assert config_of(tmp_path / "out")["tq3"]["measured_error"] == {
        "mean": report.mean_error,
        "worst": report.worst_error,
        "worst_tensor": report.worst_tensor,
    }
    assert report.mean_error is not None and report.worst_error is not None
    assert 0.02 < report.mean_error < report.worst_error < 0.06
    tq3.compress(source, tmp_path / "other", workers=1, backend="numpy")
    assert config_of(tmp_path / "other") == config_of(tmp_path / "out")


def test_what_compresses_nothing_has_no_error_to_record(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(8)})
    tq3.compress(source, tmp_path / "out", keep="*")
    assert config_of(tmp_path / "out")["tq3"]["measured_error"] is None
    assert tq3.inspect(tmp_path / "out").measured_error is None


def test_a_link_to_a_folder_stays_behind_with_a_reason(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    (source / "elsewhere").symlink_to(tmp_path)
    report = tq3.compress(source, tmp_path / "out")
    assert report.left_out == {"elsewhere/": "a link to a folder"}


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "sub/notes"])
def test_a_side_file_that_the_hub_cache_lacks_is_missed(tmp_path, name):
    plain = add(tiny_checkpoint(tmp_path / "plain"), tokenizerDOTjson="{}", sub__notes="n")
    snapshot = hub_snapshot(tmp_path / "cache", plain)
    (snapshot / name).resolve().unlink()
    with pytest.raises(StorageError, match="link whose file is missing") as caught:
        tq3.compress(snapshot, tmp_path / "out")
    assert caught.value.file == str(snapshot / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verbatim", [False, True])
def test_every_name_is_written_once(tmp_path, monkeypatch, verbatim):
    taken, replace = [], Path.replace

    def noting(self: Path, target: Path) -> Path:
        taken.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noting)
    source = add(tiny_checkpoint(tmp_path / "in", shards=2), tokenizerDOTjson="{}")
    tq3.compress(source, tmp_path / "out", verbatim_config=verbatim)
    tq3.restore(tmp_path / "out", tmp_path / "back")
    out, back = contents(tmp_path / "out"), contents(tmp_path / "back")
    assert sorted(taken) == sorted([*out, *back])


FEW_DESCRIPTORS = """
import resource, sys, tq3
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
tq3.compress(sys.argv[1], sys.argv[2], workers=4)
"""


def test_a_hundred_shards_need_no_hundred_descriptors(tmp_path):
    tensors = {f"{i}.weight": random_tensor(8, 128, seed=i) for i in range(100)}
    source = tiny_checkpoint(tmp_path / "in", tensors, shards=100)
    command = (sys.executable, "-c", FEW_DESCRIPTORS, source, tmp_path / "out")
    subprocess.run(command, check=True)
    assert (tmp_path / "out" / "tq_config.json").exists()


def test_config_json_gains_two_keys_and_keeps_every_other_byte(tmp_path):
    text = '{\n    "b":  1.0,\n    "a": "ü"\n}\n'
    source = tiny_checkpoint(tmp_path / "in", config=text)
    tq3.compress(source, tmp_path / "out", bits=4, group_size=64)
    written = (tmp_path / "out" / "config.json").read_text()
    assert written == mark(text, Recipe(bits=4, group_size=64))
    assert written.startswith('{\n    "b":  1.0,\n    "a": "ü",\n    "transformers_weights"')
    assert written.endswith("}\n}\n")


def test_verbatim_config_leaves_config_json_alone(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", config='{"a":\t1}')
    tq3.compress(source, tmp_path / "out", verbatim_config=True)
    assert (tmp_path / "out" / "config.json").read_text() == '{"a":\t1}'


def test_a_checkpoint_without_config_json_gets_none(tmp_path):
    tq3.compress(tiny_checkpoint(tmp_path / "in", config=None), tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {
        *("model.safetensors", "tq_config.json", "tq3_manifest.json"),
    }


def test_tq_config_says_what_existing_readers_ask_and_how_it_was_made(tmp_path):
    source = tiny_checkpoint(tmp_path / "my-model")
    tq3.compress(source, tmp_path / "out", keep=["*.1.*"])
    config = config_of(tmp_path / "out")
    ours = config.pop("tq3")
    assert config == {
        "bits": 3,
        "group_size": 128,
        "format": "tq3_native",
        "quantizer_seed": 42,
        "compressed_layers": 3,
        "original_model": "my-model",
    }
    assert ours["writer"] == f"tq3 {tq3.__version__}"
    assert (ours["source_dtype"], ours["source_revision"]) == ("bfloat16", None)
    assert ours["recipe"]["keep"] == ["*.1.*"]


def test_a_snapshot_of_the_hub_cache_is_followed_and_named(tmp_path):
    plain = add(tiny_checkpoint(tmp_path / "plain", shards=2), sub__notes="n")
    snapshot = hub_snapshot(tmp_path / "cache", plain, revision="4e5f")
    tq3.compress(plain, tmp_path / "from plain")
    tq3.compress(snapshot, tmp_path / "from snapshot")
    config = config_of(tmp_path / "from snapshot")
    assert config["original_model"] == "some-org/some/model"
    assert config["tq3"]["source_revision"] == "4e5f"
    one, other = (contents(tmp_path / f"from {kind}") for kind in ("plain", "snapshot"))
    for files in (one, other):  # the name of the model, and the checksum of that
        del files["tq_config.json"], files["tq3_manifest.json"]
    assert one == other
    assert not [path for path in (tmp_path / "from snapshot").rglob("*") if path.is_symlink()]


def test_a_relative_path_is_named_after_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint(tmp_path / "my-model"))
    tq3.compress(".", tmp_path / "out")
    assert config_of(tmp_path / "out")["original_model"] == "my-model"


def test_a_target_that_is_not_empty_needs_overwrite(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", shards=2)
    tq3.compress(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        tq3.compress(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "notes").write_text("mine")
    tq3.compress(source, tmp_path / "out", max_shard_size=20_000, overwrite=True)
    assert (tmp_path / "out" / "notes").read_text() == "mine"
    tq3.compress(source, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "notes").unlink()
    assert contents(tmp_path / "out").keys() == before.keys()


def test_a_target_inside_the_source_is_refused(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    before = contents(source)
    with pytest.raises(UsageError, match="inside each other"):
        tq3.compress(source, source / "tq3")
    assert contents(source) == before


def test_a_compressed_checkpoint_is_not_compressed_again(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    tq3.compress(source, tmp_path / "once")
    with pytest.raises(BadInput, match="already quantised"):
        tq3.compress(tmp_path / "once", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_damaged_source_leaves_no_target(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    with (source / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadInput, match="do not fill the file"):
        tq3.compress(source, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_unknown_backend_is_refused_with_those_that_there_are(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    with pytest.raises(UsageError, match="numpy"):
        tq3.compress(source, tmp_path / "out", backend="abacus")
    assert not (tmp_path / "out").exists()


def test_events_begin_with_the_plan(tmp_path):
    events: list[Event] = []
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(4, 128)})
    tq3.compress(source, tmp_path / "out", on_event=events.append)
    assert isinstance(events[0], Planned)
    assert sum(isinstance(event, Planned) for event in events) == 1


def test_a_side_file_whose_name_is_not_utf8_travels_along_and_is_verified(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    name = os.fsdecode(b"caf\xe9.txt")
    (source / name).write_text("x")
    tq3.compress(source, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "x"
    assert tq3.verify(tmp_path / "out").ok
    (tmp_path / "out" / name).write_text("y")
    assert [fault.check for fault in tq3.verify(tmp_path / "out").faults] == ["TQ404"]
