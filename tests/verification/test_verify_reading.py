"""However verify reads a folder, it tells all that is wrong with it, and once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.factories import Tensor, safetensors_bytes
from support.pipelines.beside import checks
from support.pipelines.spoiling import (
    FIRST,
    INDEX,
    SECOND,
    SHARD,
    change_tensors,
    changed_bytes,
    cut,
    flip,
    flip_in_header,
    flip_in_tensor,
    read_shard,
    seal,
    set_key,
)

import tq3
from tq3.errors import BadInput, StorageError
from tq3.format.manifest import Manifest, Piece
from tq3.storage.local import LocalFiles

UP = "model.layers.0.mlp.up_proj.weight"
CONFIG = "config.json"


def test_sizes_are_those_of_whole_files(copy):
    folder = copy("one")
    n_bytes = (folder / SHARD).stat().st_size
    cut(-3, SHARD)(folder)
    (fault,) = tq3.verify(folder).faults
    assert (fault.check, fault.found, fault.expected) == (
        *("TQ201", f"{n_bytes - 3} bytes"),
        str(n_bytes),
    )


def test_all_faults_are_told_at_once(copy):
    folder = seal(copy("two"))
    flip_in_header(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "old.gguf").write_text("")
    set_key(CONFIG, "quantization_config", "fp8")(folder)
    result = tq3.verify(folder)
    assert checks(result) == ["TQ105", "TQ108", "TQ201", "TQ402", "TQ403", "TQ404"]


def test_a_damaged_shard_does_not_hide_what_is_wrong_in_a_sound_one(copy):
    folder = copy("two")
    header = json.loads((folder / INDEX).read_text())["weight_map"]
    tensors = read_shard(folder / FIRST)
    name = next(name for name in tensors if name.endswith(".tq_norms"))
    assert header[name] == FIRST
    tensors[name] = changed_bytes(tensors[name], 0, -1.0, "<f4")
    (folder / FIRST).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    (folder / SECOND).write_bytes(b"no shard at all")
    result = tq3.verify(folder)
    found = [(fault.check, fault.file, fault.tensor) for fault in result.faults]
    assert found == [("TQ201", SECOND, None), ("TQ302", FIRST, name)]


def test_faults_of_one_kind_in_one_tensor_are_one_line_with_their_number(copy):
    folder = copy("one")
    name = UP + ".tq_norms"
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {name: Tensor("F32", tensors[name].shape, np.full(256, -1, "<f4").tobytes())}
        ),
    )
    (fault,) = tq3.verify(folder).faults
    assert (fault.check, fault.count) == ("TQ302", 256)
    assert "row 0, group 0" in fault.text
    assert "and 255 more" in fault.text


@pytest.mark.parametrize("piece_bytes", [7, 1001, 1 << 20])
def test_pieces_need_not_end_where_tensors_or_numbers_do(copy, monkeypatch, piece_bytes):
    """Every norm is looked at once, whatever the pieces and blocks."""
    monkeypatch.setattr("tq3.verification.checksums.BLOCK_BYTES", 101)
    folder = copy("kinds")
    assert tq3.verify(seal(folder, piece_bytes)).ok
    tensors = read_shard(folder / SHARD)
    norms = [name for name in tensors if name.endswith(".tq_norms")]
    for name in norms:
        data = np.full(len(tensors[name].data) // 4, np.nan, "<f4")
        tensors[name] = tensors[name]._replace(data=data.tobytes())
    (folder / SHARD).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    result = tq3.verify(seal(folder, piece_bytes))
    found = {fault.tensor: fault.count for fault in result.faults}
    assert set(checks(result)) == {"TQ301"}
    assert found == {name: len(tensors[name].data) // 4 for name in norms}


def test_the_number_of_workers_does_not_show(copy):
    folder = seal(copy("kinds"), 1000)
    norms = next(name for name in read_shard(folder / SHARD) if name.endswith(".tq_norms"))
    flip_in_tensor(folder / SHARD, norms, 31)  # the sign of the first one
    flip(folder / SHARD, 8 * 5000)
    answers = []
    for workers in (1, 2, 7):
        answer = tq3.verify(folder, workers=workers).to_dict()
        answers.append([answer[key] for key in ("faults", "notices", "bytes_read", "n_files")])
    assert answers[0] == answers[1] == answers[2]
    assert [fault["check"] for fault in answers[0][0]] == ["TQ302", "TQ404"]


def test_a_file_outside_of_the_folder_is_missing(copy):
    folder = seal(copy("one"))
    manifest = Manifest("w", {"../source/config.json": (Piece(0, 1, "0" * 16),)})
    (folder / "tq3_manifest.json").write_text(manifest.to_json())
    assert "TQ402" in checks(tq3.verify(folder))


def test_a_read_that_fails_is_told_and_the_rest_is_read(copy, monkeypatch):
    read_into = LocalFiles.read_into

    def fail(self, name, offset, buffer):
        if name == FIRST and offset:
            raise StorageError("can't be read: Input/output error", file=self.folder / name)
        read_into(self, name, offset, buffer)

    folder = seal(copy("two"), 5000)
    flip(folder / SECOND, 8 * 6000)
    monkeypatch.setattr(LocalFiles, "read_into", fail)
    result = tq3.verify(folder)
    assert [(fault.check, fault.file) for fault in result.faults] == [
        ("TQ109", FIRST),
        ("TQ404", SECOND),
    ]


def test_no_folder_and_one_that_cannot_be_listed_are_errors(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no such folder"):
        tq3.verify(tmp_path / "none")

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(StorageError, match="can't be read"):
        tq3.verify(tmp_path)


def test_the_last_progress_is_all_of_it(copy):
    seen: list[Any] = []
    tq3.verify(seal(copy("two")), on_event=seen.append)
    assert type(seen[0]).__name__ == "Checking"
    last = seen[-1]
    assert last.bytes_done == last.bytes_total == seen[0].bytes_total > 0
