"""Headers of safetensors files: hostile ones are refused, odd ones are read."""

from __future__ import annotations

from typing import Any

import pytest
from factories import Tensor, file_bytes, raw_tensor, safetensors_bytes

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


def two(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    """Two U8 tensors at these offsets."""
    return {
        name: entry("U8", [end - start], [start, end])
        for name, (start, end) in (("a", first), ("b", second))
    }


NOT_A_FILE = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "a length beyond the file": (file_bytes({}, length=3), "longer than it can be"),
    "a length of 2**64 - 1": (b"\xff" * 16, "longer than it can be"),
    "a length of 2**63": (file_bytes({}, length=2**63), "longer than it can be"),
    "no header at all": (file_bytes(b""), "not JSON"),
    "half of a JSON text": (file_bytes(b'{"a": '), "not JSON"),
    "two JSON texts": (file_bytes(b"{} {}"), "not JSON"),
    "bad UTF-8": (file_bytes(b'{"\xff": 1}'), "not UTF-8"),
    "half a surrogate pair": (file_bytes(b'{"\\ud800": {"dtype": "U8"}}'), "half a surrogate"),
    "nesting that would end the parser": (file_bytes(b'{"a":' + b"[" * 200_000), "nested"),
    "a number that int() refuses": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
    "a list": (file_bytes([1]), "not a JSON object"),
    "null": (file_bytes(None), "not a JSON object"),
    "a key twice": (file_bytes(b'{"a": 1, "b": 1, "a": 1}'), "'a' twice"),
    "metadata twice": (file_bytes(b'{"__metadata__": {}, "__metadata__": {}}'), "twice"),
    "metadata that is a list": (file_bytes({"__metadata__": ["a"]}), "__metadata__"),
    "metadata that is an empty list": (file_bytes({"__metadata__": []}), "__metadata__"),
    "metadata that is false": (file_bytes({"__metadata__": False}), "__metadata__"),
    "half a surrogate pair in metadata": (
        file_bytes(b'{"__metadata__": {"a": "\\udfff"}}'),
        "half a surrogate",
    ),
    "metadata with a number": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize(("content", "complaint"), NOT_A_FILE.values(), ids=NOT_A_FILE)
def test_what_is_no_header_is_refused_with_the_file_and_a_next_step(content, complaint):
    with pytest.raises(BadInput, match=complaint) as caught:
        read(content)
    assert caught.value.file == "odd.safetensors"
    assert caught.value.fix


BAD_ENTRIES = {
    "a number": (5, "does not have just dtype"),
    "no shape": ({"dtype": "F32", "data_offsets": [0, 8]}, "does not have just dtype"),
    "one key too many": (entry() | {"strides": [1]}, "does not have just dtype"),
    "an unknown dtype": (entry("F128"), "unknown dtype"),
    "a dtype in small letters": (entry("f32"), "unknown dtype"),
    "a dtype that is a list": (entry(["F32"]), "unknown dtype"),
    "a shape that is a number": (entry(shape=2), "shape"),
    "a shape that is a text": (entry(shape="2"), "shape"),
    "true for one": (entry(shape=[2, True]), "shape"),
    "a broken dimension": (entry(shape=[2.0]), "shape"),
    "negative dimensions": (entry(shape=[-1, -2]), "shape"),
    "dimensions whose product has too many digits to print": (
        entry(shape=[10**4000, 10**4000]),
        "shape",
    ),
    "a dtype that would flood the terminal": (entry("F" * 10**6), "unknown dtype"),
    "a thousand dimensions": (entry(shape=[10**18] * 1000), "shape"),
    "one offset": (entry(offsets=[8]), "data_offsets"),
    "three offsets": (entry(offsets=[0, 8, 8]), "data_offsets"),
    "a negative offset": (entry(offsets=[-8, 0]), "data_offsets"),
    "false for zero": (entry(offsets=[False, 8]), "data_offsets"),
    "the end before the start": (entry(offsets=[8, 0]), "do not fit the bytes"),
    "fewer bytes than the shape needs": (entry(offsets=[0, 4]), "do not fit the bytes"),
    "more bytes than the shape needs": (entry(shape=[1]), "do not fit the bytes"),
    "a part of a byte": (entry("F4", [15], [0, 7]), "do not fit the bytes"),
    "a product that wraps at 64 bits": (entry(shape=[2**33, 2**33, 2**62]), "larger than any file"),
    "a product too large but for a zero": (
        entry(shape=[2**33, 2**33, 0], offsets=[0, 0]),
        "larger than any file",
    ),
}


@pytest.mark.parametrize(("bad", "complaint"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_bad_entry_is_refused_with_the_name_of_its_tensor(bad, complaint):
    with pytest.raises(BadInput, match=complaint) as caught:
        read(file_bytes({"model.x.weight": bad}, bytes(8)))
    assert caught.value.tensor == "model.x.weight"
    assert len(str(caught.value)) < 1000


BAD_PLACES = {
    "an overlap": (two((0, 5), (4, 8)), "an overlap"),
    "the same bytes twice": (two((0, 8), (0, 8)), "an overlap"),
    "a gap": (two((0, 3), (4, 8)), "a gap"),
    "a gap at the start": (two((1, 4), (4, 8)), "a gap at the start"),
    "beyond the file": (two((0, 4), (4, 9)), "do not fill the file"),
    "bytes that belong to none": (two((0, 3), (3, 7)), "do not fill the file"),
    "an empty tensor in the middle of another": (two((0, 8), (4, 4)), "an overlap"),
    "an empty tensor behind the end": (two((0, 8), (9, 9)), "a gap"),
    "bytes and no tensors": ({}, "do not fill the file"),
}


@pytest.mark.parametrize(("header", "complaint"), BAD_PLACES.values(), ids=BAD_PLACES)
def test_tensors_must_fill_the_file_without_a_gap_or_an_overlap(header, complaint):
    with pytest.raises(BadInput, match=complaint):
        read(file_bytes(header, bytes(8)))


def test_a_hostile_length_is_refused_before_anything_is_read():
    def only_the_length(offset: int, length: int) -> bytes:
        assert (offset, length) == (0, 8)
        return (10**9).to_bytes(8, "little")

    with pytest.raises(BadInput, match="longer than it can be"):
        read_header(only_the_length, 10**12, "huge.safetensors")


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
    content = file_bytes(two((5, 8), (0, 5)), b"bbbbbaaa")
    header = read(content)
    start = header.offsets["a"]
    assert content[start : start + 3] == b"aaa"
    start = header.offsets["b"]
    assert content[start : start + 5] == b"bbbbb"
