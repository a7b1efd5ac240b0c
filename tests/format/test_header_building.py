"""Headers that tq3 writes are those of the safetensors library, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec
from safetensors.numpy import save_file

from tq3.errors import BadInput
from tq3.format.header import DTYPE_BITS, TensorInfo, build_header, read_header

NUMPY_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def infos(dtypes: Iterable[str]) -> st.SearchStrategy[list[TensorInfo]]:
    """Tensors with different names."""
    one = st.builds(TensorInfo, NAMES, st.sampled_from(sorted(dtypes)), SHAPES)
    whole = one.filter(lambda info: info.n_elements * DTYPE_BITS[info.dtype] % 8 == 0)
    return st.lists(whole, max_size=8, unique_by=lambda info: info.name)


def our_file(tensors: dict[str, tuple[TensorInfo, bytes]], metadata: dict[str, str]) -> bytes:
    """A file with `build_header`'s header and each tensor at the offset that it gives."""
    header, offsets = build_header((info for info, _ in tensors.values()), metadata)
    content = bytearray(header) + bytes(sum(len(data) for _, data in tensors.values()))
    for name, (_, data) in tensors.items():
        content[offsets[name] : offsets[name] + len(data)] = data
    return bytes(content)


def as_numpy(info: TensorInfo, seed: int) -> np.ndarray:
    """An array of the tensor's type and shape, from random bytes."""
    dtype = np.dtype(NUMPY_DTYPES[info.dtype])
    raw = np.random.default_rng(seed).bytes(info.n_elements * dtype.itemsize)
    if info.dtype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(info.shape)


@given(tensors=infos(NUMPY_DTYPES), metadata=st.sampled_from([{}, {"format": "pt"}]))
def test_a_file_equals_the_librarys_byte_for_byte(tensors, metadata, tmp_path):
    arrays = {info.name: as_numpy(info, i) for i, info in enumerate(tensors)}
    save_file(arrays, tmp_path / "theirs", metadata or None)
    ours = {info.name: (info, arrays[info.name].tobytes()) for info in tensors}
    assert our_file(ours, metadata) == (tmp_path / "theirs").read_bytes()


def test_every_dtype_and_names_of_many_alphabets_give_the_librarys_bytes(tmp_path):
    tensors = [
        TensorInfo(f"{letter}.{dtype}", dtype, (2, 3))
        for dtype in NUMPY_DTYPES
        for letter in ("a", "Z", "é", "\ufb01", "重", "🦙", "\t", '"', "\x7f", "a/b")
    ]
    arrays = {info.name: as_numpy(info, i) for i, info in enumerate(tensors)}
    save_file(arrays, tmp_path / "theirs", {"format": "pt"})
    ours = {info.name: (info, arrays[info.name].tobytes()) for info in tensors}
    assert our_file(ours, {"format": "pt"}) == (tmp_path / "theirs").read_bytes()


OTHER_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_dtypes_without_a_numpy_type_are_ranked_as_the_library_ranks_them(dtype):
    names = {"BOOL": "bool", "U8": "uint8", "I16": "int16", "F16": "float16", "F32": "float32"}
    names |= OTHER_DTYPES
    tensors = [TensorInfo(name, name, (4,)) for name in ("BOOL", "U8", "I16", "F16", "F32", dtype)]
    ours = {info.name: (info, bytes(info.n_bytes)) for info in tensors}
    data = np.zeros(64, np.uint8)
    specs = {}
    for info in tensors:
        stored = info.n_bytes if info.dtype == "F4" else info.n_elements  # two values in a byte
        specs[info.name] = TensorSpec(
            dtype=names[info.dtype],
            shape=[stored],
            data_ptr=data.ctypes.data,
            data_len=info.n_bytes,
        )
    assert our_file(ours, {}) == bytes(safetensors.serialize(specs))


@given(tensors=infos(DTYPE_BITS), metadata=st.dictionaries(NAMES, NAMES, max_size=2))
def test_reading_what_was_built_gives_the_same_tensors(tensors, metadata):
    header, offsets = build_header(tensors, metadata)
    n_data = sum(info.n_bytes for info in tensors)
    back = read_header(lambda at, n: header[at : at + n], len(header) + n_data, "x")
    assert back.tensors == {info.name: info for info in tensors}
    assert (back.offsets, back.metadata) == (offsets, metadata)


@given(tensors=infos(NUMPY_DTYPES))
def test_every_tensor_is_aligned_to_its_element(tensors):
    _, offsets = build_header(tensors, {"format": "pt"})
    for info in tensors:
        assert offsets[info.name] % (DTYPE_BITS[info.dtype] // 8) == 0


def test_the_order_of_the_request_does_not_matter():
    tensors = [TensorInfo(name, dtype, (2,)) for name in "bca" for dtype in ("F32",)]
    assert build_header(tensors, {}) == build_header(reversed(tensors), {})


def test_a_small_header_is_these_bytes():
    header, offsets = build_header([TensorInfo("w", "U8", (3, 1))], {"format": "pt"})
    text = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"U8","shape":[3,1],"data_offsets":[0,3]}}  '
    )
    assert header == len(text).to_bytes(8, "little") + text
    assert offsets == {"w": len(header)}


def test_two_tensors_of_one_name_are_refused():
    twice = [TensorInfo("a", "U8", (4,)), TensorInfo("a", "F32", (1,))]
    with pytest.raises(BadInput, match="two tensors"):
        build_header(twice, {})
