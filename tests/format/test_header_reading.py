"""Headers of safetensors files: hostile ones are refused, odd ones are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.factories import Tensor, file_bytes, raw_tensor, safetensors_bytes

from tq3.errors import BadInput
from tq3.format.header import DTYPE_BITS, Header, read_header


def read(content: bytes) -> Header:
    """The header of a file that lies in memory."""

    def piece(offset: int, length: int) -> bytes:
        assert offset + length <= len(content), "nothing beyond the file may be asked for"
        return content[offset : offset + length]

    return read_header(piece, len(content), "odd.safetensors")


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = Path(__file__).parents[1] / "broken"
KINDS = ("cut", "length", "json", "entry", "dtype", "shape", "offsets", "place")
FILES = [path for kind in KINDS for path in sorted(BROKEN.glob(f"{kind}/*/model.safetensors"))]
OF_A_TENSOR = ("entry", "dtype", "shape", "offsets")


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_broken_file_is_refused_with_its_name_its_tensor_and_a_next_step(path):
    with pytest.raises(BadInput) as caught:
        read(path.read_bytes())
    assert caught.value.file == "odd.safetensors"
    assert caught.value.fix
    assert bool(caught.value.tensor) or path.parts[-3] not in OF_A_TENSOR


def test_a_file_cut_anywhere_or_with_a_byte_too_many_is_refused():
    sound = safetensors_bytes({"a": raw_tensor("F32", (2,), 32), "b": raw_tensor("U8", (3,), 8)})
    assert read(sound)
    for end in range(len(sound)):
        with pytest.raises(BadInput):
            read(sound[:end])
    with pytest.raises(BadInput):
        read(sound + b"\0")


TOO_LARGE_FOR_THE_CORPUS = {
    "nesting that would end the parser": (b'{"a":' + b"[" * 200_000, "nested"),
    "ten million items": (b"[" + b"0," * 10_000_000, "too large"),
    "a thousand dimensions": (json.dumps({"a": entry(shape=[10**18] * 1000)}).encode(), "shape"),
    "a dtype that would flood the terminal": (
        json.dumps({"a": entry("F" * 10**6)}).encode(),
        "unknown dtype",
    ),
}


@pytest.mark.parametrize(
    ("text", "complaint"), TOO_LARGE_FOR_THE_CORPUS.values(), ids=TOO_LARGE_FOR_THE_CORPUS
)
def test_a_header_that_would_overwhelm_is_refused_in_a_few_words(text, complaint):
    with pytest.raises(BadInput, match=complaint) as caught:
        read(file_bytes(text, bytes(8)))
    assert len(str(caught.value)) < 1000


def test_a_hostile_length_is_refused_before_anything_is_read():
    def only_the_length(offset: int, length: int) -> bytes:
        assert (offset, length) == (0, 8)
        return (10**9).to_bytes(8, "little")

    with pytest.raises(BadInput, match="longer than it can be"):
        read_header(only_the_length, 10**12, "huge.safetensors")


def test_what_git_lfs_leaves_in_a_files_place_is_told_from_a_damaged_file():
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 551704\n"
    with pytest.raises(BadInput, match="a Git LFS pointer, not the file; run `git lfs pull`"):
        read(text)


ODD_NAMES = ["", " ", ".", "a.b..c", "a b", "größe", "重み", "🦙.weight", 'quo"te', "back\\slash"]


@pytest.mark.parametrize("name", [*ODD_NAMES, "new\nline", "../../etc/passwd", "__metadata"])
def test_any_text_may_be_a_name(name):
    header = read(safetensors_bytes({name: raw_tensor("U8", (3,), 8)}))
    assert list(header.tensors) == [name]
    assert header.tensors[name].shape == (3,)


@pytest.mark.parametrize(("dtype", "bits"), DTYPE_BITS.items())
def test_every_dtype_is_read_with_its_size(dtype, bits):
    info = read(safetensors_bytes({"a": raw_tensor(dtype, (2, 8), bits)})).tensors["a"]
    assert (info.dtype, info.shape, info.n_elements) == (dtype, (2, 8), 16)
    assert info.n_bytes == 2 * bits


def test_empty_tensors_and_numbers_without_a_dimension_are_tensors():
    tensors = {
        "empty at the start": Tensor("F32", (0,), b""),
        "number": raw_tensor("F64", (), 64),
        "empty": Tensor("BF16", (5, 0, 3), b""),
        "row": raw_tensor("U8", (5,), 8),
        "empty at the end": Tensor("I8", (0, 0), b""),
    }
    content = safetensors_bytes(tensors)
    header = read(content)
    assert {n: info.shape for n, info in header.tensors.items()} == {
        n: t.shape for n, t in tensors.items()
    }
    assert header.tensors["number"].n_elements == 1
    assert header.tensors["empty"].n_bytes == 0
    assert header.offsets["row"] == len(content) - 5


def test_metadata_is_read_and_need_not_be_there():
    assert read(file_bytes({"__metadata__": {"format": "pt"}})).metadata == {"format": "pt"}
    assert read(file_bytes({})).metadata == {}
    assert read(file_bytes({})).tensors == {}


def test_offsets_are_absolute_and_independent_of_the_order_of_the_entries():
    entries = {"a": entry("U8", [3], [5, 8]), "b": entry("U8", [5], [0, 5])}
    content = file_bytes(entries, b"bbbbbaaa")
    header = read(content)
    start = header.offsets["a"]
    assert content[start : start + 3] == b"aaa"
    start = header.offsets["b"]
    assert content[start : start + 5] == b"bbbbb"
