"""Which files make up a checkpoint, and what is refused because it contradicts itself."""

from __future__ import annotations

import json

import pytest
from support.factories import FakeFiles
from support.plan.folders import INDEX, ONE, index, names_of, read, refusal, shard

from tq3.errors import BadInput
from tq3.format.checkpoint import read_checkpoint


def test_a_single_file_needs_no_index():
    checkpoint = read({"model.safetensors": shard("b", "a"), "config.json": b'{"x": 1}'})
    assert [tensor.info.name for tensor in checkpoint.tensors] == ["b", "a"]
    assert checkpoint.weight_files == ("model.safetensors",)
    assert checkpoint.config == {"x": 1}


def test_an_index_says_which_files_belong_whatever_their_names():
    files = {
        INDEX: index(a="zzz.safetensors", b="weights part.safetensors", c="zzz.safetensors"),
        "zzz.safetensors": shard("a", "c"),
        "weights part.safetensors": shard("b"),
        "foreign.safetensors": shard("x"),
    }
    checkpoint = read(files)
    assert checkpoint.weight_files == ("weights part.safetensors", "zzz.safetensors")
    assert {tensor.info.name: tensor.file for tensor in checkpoint.tensors} == {
        "a": "zzz.safetensors",
        "b": "weights part.safetensors",
        "c": "zzz.safetensors",
    }


def test_shards_may_lie_in_folders_and_have_any_ending():
    files = {
        INDEX: index(a="parts/1.safetensors", b="2.weights"),
        "parts/1.safetensors": shard("a"),
        "2.weights": shard("b"),
    }
    assert sorted(names_of(files)) == ["a", "b"]


def test_one_file_of_an_odd_name_is_the_checkpoint():
    assert names_of({"pony.safetensors": shard("a"), "readme.md": b""}) == ["a"]


def test_files_in_folders_do_not_make_the_one_file_doubtful():
    files = {"pony.safetensors": shard("a"), "onnx/other.safetensors": shard("b")}
    assert names_of(files) == ["a"]


def test_a_file_in_a_folder_is_not_the_checkpoint():
    assert "no safetensors weights" in str(refusal({"unet/model.safetensors": shard("a")}))


def test_several_files_without_index_are_refused():
    error = refusal({"a.safetensors": shard("a"), "b.safetensors": shard("b")})
    assert "no index" in str(error)
    assert error.expected == INDEX


def test_a_folder_without_weights_is_refused_with_what_it_holds():
    error = refusal({"pytorch_model.bin": b"", "config.json": b"{}"})
    assert "pytorch_model.bin" in str(error)
    assert "save_pretrained" in str(error.fix)
    assert "no files" in str(refusal({}))


def test_a_shard_that_is_missing_is_named():
    error = refusal({INDEX: index(a="1.safetensors", b="2.safetensors"), "1.safetensors": b""})
    assert error.found == "2.safetensors"
    assert error.tensor == "b"


def test_a_shard_outside_of_the_folder_is_missing():
    assert refusal({INDEX: index(a="../other/1.safetensors")}).found == "../other/1.safetensors"


def test_one_file_under_two_spellings_is_one_file():
    files = {INDEX: index(a="1.safetensors", b="./1.safetensors"), "1.safetensors": shard("a", "b")}
    assert read(files | {"./1.safetensors": b""}).weight_files == ("1.safetensors",)


def test_a_tensor_that_the_index_promises_must_be_there():
    files = {INDEX: index(a="1.safetensors", b="1.safetensors"), "1.safetensors": shard("a")}
    assert refusal(files).tensor == "b"


def test_a_tensor_must_be_in_the_file_that_the_index_says():
    files = {
        INDEX: index(a="1.safetensors", b="1.safetensors", c="2.safetensors"),
        "1.safetensors": shard("a"),
        "2.safetensors": shard("b", "c"),
    }
    error = refusal(files)
    assert (error.tensor, error.file, error.found) == ("b", "1.safetensors", "2.safetensors")


def test_a_tensor_in_two_shards_is_refused():
    files = {
        INDEX: index(a="1.safetensors", b="2.safetensors"),
        "1.safetensors": shard("a"),
        "2.safetensors": shard("a", "b"),
    }
    error = refusal(files)
    assert (error.tensor, error.file) == ("a", "2.safetensors")
    assert "1.safetensors" in str(error)


def test_a_tensor_that_only_a_shard_knows_is_not_lost():
    files = {INDEX: index(a="1.safetensors"), "1.safetensors": shard("a", "extra")}
    assert names_of(files) == ["a", "extra"]


def test_a_key_twice_in_config_json_is_read_as_hosts_read_it():
    files = {"model.safetensors": shard("a"), "config.json": b'{"x": 1, "x": 2}'}
    assert read(files).config == {"x": 2}


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_json_file_too_large_for_one_is_refused_unread(name):
    files = {"1.safetensors": shard("a"), INDEX: index(a="1.safetensors"), name: b""}
    with pytest.raises(BadInput, match="too large") as caught:
        read_checkpoint(FakeFiles(files, sizes={name: 2**40}))
    assert caught.value.file == name


def test_a_damaged_shard_is_refused_by_name():
    files = {
        INDEX: index(a="1.safetensors", b="2.safetensors"),
        "1.safetensors": shard("a"),
        "2.safetensors": shard("b")[:-1],
    }
    assert refusal(files).file == "2.safetensors"


def test_tensors_come_in_the_order_of_the_disk_not_of_the_header():
    data = ONE.data
    header = {
        name: {"dtype": "BF16", "shape": [2, 4], "data_offsets": [at, at + len(data)]}
        for name, at in (("last", 2 * len(data)), ("first", 0), ("middle", len(data)))
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + 3 * data
    checkpoint = read({"model.safetensors": content})
    assert [tensor.info.name for tensor in checkpoint.tensors] == ["first", "middle", "last"]
    offsets = [tensor.offset for tensor in checkpoint.tensors]
    assert offsets == [8 + len(text) + i * len(data) for i in range(3)]
