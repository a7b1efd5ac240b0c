"""Files that are no safetensors file, or whose header is not true."""

from __future__ import annotations

from typing import Any

from support.broken.cases import Case
from support.factories import Tensor, file_bytes, raw_tensor, safetensors_bytes

FILE = "model.safetensors"
SOUND = safetensors_bytes(
    {"a.bias": raw_tensor("F32", (2,), 32), "b.bias": Tensor("U8", (0,), b"")}
)
_TEXT = int.from_bytes(SOUND[:8], "little")
_CUT_SHORT = "longer than it can be"


def case(content: bytes, words: str) -> Case:
    """A folder of this one file."""
    return Case({FILE: content}, FILE, words)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(bad: Any, words: str) -> Case:
    """A file of eight bytes of data whose only tensor has this entry."""
    return case(file_bytes({"model.x.weight": bad}, bytes(8)), words)


def two(first: tuple[int, int], second: tuple[int, int], words: str) -> Case:
    """Two U8 tensors at these offsets in eight bytes of data."""
    header = {
        name: entry("U8", [end - start], [start, end])
        for name, (start, end) in (("a", first), ("b", second))
    }
    return case(file_bytes(header, bytes(8)), words)


CUT = {
    f"cut/after-{n:03d}-bytes": case(SOUND[:n], words)
    for n, words in (
        (0, "too short"),
        (1, "too short"),
        (7, "too short"),
        (8, _CUT_SHORT),
        (9, _CUT_SHORT),
        (8 + _TEXT - 1, _CUT_SHORT),
        (8 + _TEXT, "do not fill the file"),
        (8 + _TEXT + 1, "do not fill the file"),
        (len(SOUND) - 1, "do not fill the file"),
    )
} | {"cut/one-byte-too-many": case(SOUND + b"\0", "do not fill the file")}

LENGTH = {
    "length/one-more-than-the-file": case(file_bytes({}, length=3), _CUT_SHORT),
    "length/2-to-the-63": case(file_bytes({}, length=2**63), _CUT_SHORT),
    "length/minus-1": case(b"\xff" * 8 + b"{}", _CUT_SHORT),
    "length/big-endian": case((2).to_bytes(8, "big") + b"{}", _CUT_SHORT),
    "length/zero": case(file_bytes(b""), "not JSON"),
    "length/one-less-than-the-json": case(file_bytes({}, length=1), "not JSON"),
    "length/a-zip-archive": case(b"PK\x03\x04" + bytes(60), _CUT_SHORT),
    "length/a-pickle": case(b"\x80\x02csubprocess\ncall\n(X\x04\0\0\0true\x85R.", _CUT_SHORT),
}

JSON = {
    "json/half-of-a-text": case(file_bytes(b'{"a": '), "not JSON"),
    "json/two-texts": case(file_bytes(b"{} {}"), "not JSON"),
    "json/padded-with-nul": case(file_bytes(b"{}\0\0\0\0\0\0"), "not JSON"),
    "json/byte-order-mark": case(file_bytes(b"\xef\xbb\xbf{}"), "not JSON"),
    "json/utf-16": case(file_bytes("{}".encode("utf-16")), "not UTF-8"),
    "json/bad-utf-8": case(file_bytes(b'{"\xff": 1}'), "not UTF-8"),
    "json/half-a-surrogate-pair": case(file_bytes(b'{"\\ud800": 1}'), "half a surrogate"),
    "json/line-break-in-a-name": case(file_bytes(b'{"a\nb": 1}'), "not JSON"),
    "json/nested-3000-levels": case(
        file_bytes(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"), "nested"
    ),
    "json/nested-200-levels": case(file_bytes(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"), "nested"),
    "json/number-of-5000-digits": case(file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
    "json/list": case(file_bytes([1]), "not a JSON object"),
    "json/null": case(file_bytes(None), "not a JSON object"),
    "json/key-twice": case(file_bytes(b'{"a": 1, "b": 1, "a": 1}'), "'a' twice"),
    "json/dtype-twice": case(file_bytes(b'{"a": {"dtype": "U8", "dtype": "I8"}}'), "twice"),
    "json/metadata-twice": case(file_bytes(b'{"__metadata__": {}, "__metadata__": {}}'), "twice"),
    "json/metadata-list": case(file_bytes({"__metadata__": ["a"]}), "__metadata__"),
    "json/metadata-empty-list": case(file_bytes({"__metadata__": []}), "__metadata__"),
    "json/metadata-false": case(file_bytes({"__metadata__": False}), "__metadata__"),
    "json/metadata-number": case(file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "json/metadata-half-a-surrogate-pair": case(
        file_bytes(b'{"__metadata__": {"a": "\\udfff"}}'), "half a surrogate"
    ),
}

_NOT_NATURAL = "the shape is not a list"
_NO_PAIR = "data_offsets is not a pair"
_NO_FIT = "do not fit the bytes"
ENTRY = {
    "entry/number": one(5, "does not have just dtype"),
    "entry/no-shape": one({"dtype": "F32", "data_offsets": [0, 8]}, "does not have just dtype"),
    "entry/strides": one(entry() | {"strides": [1]}, "does not have just dtype"),
    "dtype/unknown": one(entry("F128"), "unknown dtype"),
    "dtype/small-letters": one(entry("f32"), "unknown dtype"),
    "dtype/list": one(entry(["F32"]), "unknown dtype"),
    "dtype/null": one(entry(None), "unknown dtype"),
    "dtype/long": one(entry("F" * 900), "unknown dtype"),
    "shape/number": one(entry(shape=2), _NOT_NATURAL),
    "shape/text": one(entry(shape="2"), _NOT_NATURAL),
    "shape/true": one(entry(shape=[2, True]), _NOT_NATURAL),
    "shape/float": one(entry(shape=[2.0]), _NOT_NATURAL),
    "shape/nan": one(entry(shape=[float("nan")]), _NOT_NATURAL),
    "shape/1e400": case(
        file_bytes(b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 8]}}', bytes(8)),
        _NOT_NATURAL,
    ),
    "shape/negative": one(entry(shape=[-1, -2]), _NOT_NATURAL),
    "shape/4000-digits": one(entry(shape=[10**4000]), _NOT_NATURAL),
    "shape/100-dimensions": one(entry(shape=[1] * 99 + [2]), _NOT_NATURAL),
    "shape/product-wraps": one(entry(shape=[2**33, 2**31, 2]), "larger than any file"),
    "shape/product-wraps-but-for-a-zero": one(
        entry(shape=[2**33, 2**33, 0], offsets=[0, 0]), "larger than any file"
    ),
    "shape/fewer-bytes-than-it-needs": one(entry(offsets=[0, 4]), _NO_FIT),
    "shape/more-bytes-than-it-needs": one(entry(shape=[1]), _NO_FIT),
    "shape/part-of-a-byte": one(entry("F4", [15], [0, 7]), _NO_FIT),
    "offsets/one": one(entry(offsets=[8]), _NO_PAIR),
    "offsets/three": one(entry(offsets=[0, 8, 8]), _NO_PAIR),
    "offsets/negative": one(entry(offsets=[-8, 0]), _NO_PAIR),
    "offsets/false": one(entry(offsets=[False, 8]), _NO_PAIR),
    "offsets/float": one(entry(offsets=[0, 8.0]), _NO_PAIR),
    "offsets/2-to-the-64": one(entry(offsets=[2**64 - 8, 2**64]), _NO_PAIR),
    "offsets/reversed": one(entry(offsets=[8, 0]), _NO_FIT),
}

PLACE = {
    "place/overlap": two((0, 5), (4, 8), "an overlap"),
    "place/same-bytes": two((0, 8), (0, 8), "an overlap"),
    "place/gap": two((0, 3), (4, 8), "a gap"),
    "place/gap-at-the-start": two((1, 4), (4, 8), "a gap at the start"),
    "place/beyond-the-file": two((0, 4), (4, 9), "do not fill the file"),
    "place/far-beyond-the-file": two((0, 4), (4, 2**62), "do not fill the file"),
    "place/bytes-of-no-tensor": two((0, 3), (3, 7), "do not fill the file"),
    "place/empty-tensor-inside-another": two((0, 8), (4, 4), "an overlap"),
    "place/empty-tensor-behind-the-end": two((0, 8), (9, 9), "a gap"),
    "place/bytes-and-no-tensor": case(file_bytes({}, bytes(8)), "do not fill the file"),
}

CASES = CUT | LENGTH | JSON | ENTRY | PLACE
