"""The safetensors header: eight bytes of length, JSON, then the tensors' bytes without a gap.

Everything is checked before anything is allocated or believed. The safetensors README specifies it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from tq3.errors import BadInput
from tq3.format.json_reading import parse_json

# Bits of one element, in the order in which the safetensors library ranks its dtypes.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# The dtypes of weights that can be coded.
FLOATS = ("BF16", "F16", "F32")
# Those of 8 bits that have a sign; exponents alone, F8_E8M0, are scales.
FLOATS_8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}
_LENGTH_BYTES = 8
_GIT_LFS = b"version "  # no length: 2 * 10**18
_MAX_JSON_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_NATURAL = 2**63
_MAX_DIMENSIONS = 64

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file, each one's first byte as an absolute offset, the metadata."""

    tensors: dict[str, TensorInfo]
    offsets: dict[str, int]
    metadata: dict[str, str]


def read_header(read: Read, file_size: int, file: str) -> Header:
    """Parse and check a file's header; `read(offset, length)` gives its bytes. Raises BadInput."""
    if file_size < _LENGTH_BYTES:
        raise _bad(file, "too short for a safetensors file", found=f"{file_size} bytes")
    start = read(0, _LENGTH_BYTES)
    n_json = int.from_bytes(start, "little")
    if start == _GIT_LFS:
        raise BadInput("a Git LFS pointer, not the file", file=file, fix="run `git lfs pull`")
    room = min(file_size - _LENGTH_BYTES, _MAX_JSON_BYTES)
    if n_json > room:
        raise _bad(
            file,
            "the header is longer than it can be: not a safetensors file, or cut short",
            found=f"{n_json} bytes",
            expected=f"at most {room}",
        )
    entries = _parse_json(read(_LENGTH_BYTES, n_json), file)
    metadata = _metadata(entries.pop("__metadata__", None), file)
    data_start = _LENGTH_BYTES + n_json
    placed = {name: _tensor(name, entry, file) for name, entry in entries.items()}
    _check_no_gap_or_overlap(placed, data_start, file_size, file)
    return Header(
        tensors={name: info for name, (info, _, _) in placed.items()},
        offsets={name: data_start + start for name, (_, start, _) in placed.items()},
        metadata=metadata,
    )


def build_header(
    tensors: Iterable[TensorInfo], metadata: dict[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header's bytes, and each tensor's absolute offset, in the order of the file.

    Order, spacing and padding are those of the safetensors library: wide dtypes first (so that
    every tensor is aligned to its element), then by name.
    """
    ordered = sorted(tensors, key=lambda info: (-_RANK[info.dtype], info.name.encode()))
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    starts: dict[str, int] = {}
    position = 0
    for info in ordered:
        if info.name in starts:
            raise BadInput("two tensors would have this name", tensor=info.name)
        starts[info.name] = position
        end = position + info.n_bytes
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data_start = _LENGTH_BYTES + len(text)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, {name: data_start + start for name, start in starts.items()}


def _bad(file: str, message: str, **details: Any) -> BadInput:
    return BadInput(message, file=file, fix="fetch the file again", **details)


def _parse_json(text: bytes, file: str) -> dict[str, Any]:
    try:
        entries = parse_json(text.decode("utf-8"), unique=True)
    except UnicodeDecodeError as error:
        raise _bad(file, f"the header is not UTF-8: {error}") from None
    except ValueError as error:
        raise _bad(file, f"the header is {error}") from None
    if not isinstance(entries, dict):
        raise _bad(file, "the header is not a JSON object", found=type(entries).__name__)
    if not _is_unicode(entries):
        raise _bad(file, "a tensor's name has half a surrogate pair")
    return entries


def _metadata(value: Any, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _bad(file, "__metadata__ is not an object of strings")
    if not _is_unicode((*value, *value.values())):
        raise _bad(file, "__metadata__ has half a surrogate pair")
    return value


def _is_unicode(texts: Iterable[str]) -> bool:
    """JSON can spell half of a surrogate pair; no file can be written with it."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(name: str, entry: Any, file: str) -> tuple[TensorInfo, int, int]:
    def bad(message: str, **details: Any) -> BadInput:
        return _bad(file, message, tensor=name, **details)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("the header's entry does not have just dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise bad("unknown dtype", found=dtype, expected="a safetensors dtype such as BF16")
    if not _is_naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise bad(f"the shape is not a list of at most {_MAX_DIMENSIONS} whole numbers")
    # With a zero among them the product would fit any file.
    if prod(max(n, 1) for n in shape) >= _MAX_NATURAL:
        raise bad("the shape is larger than any file", found=shape)
    if not _is_naturals(span) or len(span) != 2:
        raise bad("data_offsets is not a pair of whole numbers", found=span)
    info = TensorInfo(name, dtype, tuple(shape))
    start, end = span
    if (end - start) * 8 != info.n_elements * DTYPE_BITS[dtype]:
        raise bad(
            f"dtype {dtype} and shape {shape} do not fit the bytes",
            found=f"{end - start} bytes",
            expected=info.n_bytes,
        )
    return info, start, end


def _is_naturals(value: Any) -> bool:
    """Whole numbers that a file's size can hold: their product stays short enough to print."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < _MAX_NATURAL for item in value
    )


def _check_no_gap_or_overlap(
    placed: dict[str, tuple[TensorInfo, int, int]], data_start: int, file_size: int, file: str
) -> None:
    spans = sorted((start, end, name) for name, (_, start, end) in placed.items())
    n_data = file_size - data_start
    edges = [(0, 0, None), *spans, (n_data, n_data, None)]
    for (_, end, before), (start, _, name) in pairwise(edges):
        if start == end:
            continue
        if name is None:
            raise _bad(
                file,
                "the tensors do not fill the file",
                found=f"{file_size} bytes",
                expected=data_start + end,
            )
        between = f"behind {before!r}" if before else "at the start"
        fault = "a gap" if start > end else "an overlap"
        raise _bad(file, f"{fault} {between}", tensor=name, found=start, expected=end)
