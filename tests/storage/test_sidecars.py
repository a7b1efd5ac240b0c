"""What travels along with the weights, and what stays behind and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.storage.sidecars import choose_sidecars

ACCOUNTED = ("model.safetensors", "model.safetensors.index.json", "tq_config.json")

COPIED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "vocab.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "modeling_custom.py",
    "LICENSE",
    "README.md",
    "1_Pooling/config.json",
    "additional/chat_templates/tool.jinja",
    "assets/picture.png",
    "binary.txt",
    "documents.index.json",
    "tokenizer.index.fp16.json",
    "gitignore.md",
    "cache_utils.py",
]

LEFT_OUT = {
    "pytorch_model.bin": "weights",
    "pytorch_model-00001-of-00002.bin": "weights",
    "pytorch_model.bin.index.json": "weights",
    "consolidated.safetensors.index.json": "weights",
    "model.safetensors.index.fp16.json": "weights",
    "tf_model.h5": "weights",
    "flax_model.msgpack": "weights",
    "rust_model.ot": "weights",
    "consolidated.00.pth": "weights",
    "model.Q4_K_M.gguf": "weights",
    "foreign.safetensors": "weights",
    "training_args.bin": "weights",
    "onnx/model.onnx": "weights",
    ".gitattributes": "git",
    ".gitignore": "git",
    ".git/config": "git",
    "sub/.git/HEAD": "git",
    ".cache/huggingface/download/config.json.metadata": "cache",
    "__pycache__/modeling.cpython-311.pyc": "cache",
    "code/__pycache__/x.pyc": "cache",
    ".tq3.part/config.json.part": "draft",
    "elsewhere/": "link to a folder",
    "sub/elsewhere/": "link to a folder",
}


@pytest.mark.parametrize("name", COPIED)
def test_what_is_not_weights_is_copied(name):
    assert choose_sidecars([name], ACCOUNTED).copied == {name: name}


@pytest.mark.parametrize(("name", "why"), LEFT_OUT.items())
def test_other_weights_git_and_caches_stay_behind_with_a_reason(name, why):
    found = choose_sidecars([name], ACCOUNTED)
    assert found.copied == {}
    assert why in found.left_out[name]


def test_the_callers_own_files_are_neither_copied_nor_left_out():
    found = choose_sidecars([*ACCOUNTED, "a.txt"], ACCOUNTED)
    assert (found.copied, found.left_out) == ({"a.txt": "a.txt"}, {})


def test_a_folder_of_other_weights_stays_behind_whole():
    names = ["onnx/model.onnx", "onnx/config.json", "onnx/deep/er.txt", "docs/config.json"]
    found = choose_sidecars(names, ACCOUNTED)
    assert found.copied == {"docs/config.json": "docs/config.json"}
    assert found.left_out["onnx/config.json"] == "in a folder of other weights"
    assert found.left_out["onnx/deep/er.txt"] == "in a folder of other weights"


def test_weights_at_the_top_do_not_take_their_neighbours_along():
    found = choose_sidecars(["pytorch_model.bin", "config.json", "a/b.json"], ACCOUNTED)
    assert set(found.copied) == {"config.json", "a/b.json"}


def test_shards_in_a_folder_do_not_leave_their_neighbours_behind():
    found = choose_sidecars(["parts/1.safetensors", "parts/notes.txt"], ["parts/1.safetensors"])
    assert set(found.copied) == {"parts/notes.txt"}


def test_a_renamed_file_is_copied_under_its_new_name():
    renamed = {"README.md": "README.source.md"}
    found = choose_sidecars(["LICENSE", "README.md"], (), renamed)
    assert found.copied == {"LICENSE": "LICENSE", "README.md": "README.source.md"}


def test_what_has_the_new_name_already_stays_behind_with_the_reason():
    names = ["README.md", "README.source.md"]
    found = choose_sidecars(names, (), {"README.source.md": "README.md"})
    assert found.copied == {"README.source.md": "README.md"}
    assert found.left_out == {"README.md": "README.source.md takes its name"}


def test_without_the_renamed_file_its_new_name_is_free():
    found = choose_sidecars(["README.source.md"], (), {"README.md": "README.source.md"})
    assert found.copied == {"README.source.md": "README.source.md"}


PARTS = st.sampled_from(["a", "b.json", ".git", "x.bin", "__pycache__", "w.safetensors"])


@given(names=st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=12))
def test_every_file_is_copied_or_left_out_and_never_both(names):
    found = choose_sidecars(sorted(names), ())
    assert set(found.copied) | set(found.left_out) == names
    assert not set(found.copied) & set(found.left_out)
