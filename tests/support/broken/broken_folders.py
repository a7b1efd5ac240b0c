"""Folders whose index or config.json is wrong. The shards themselves are sound."""

from __future__ import annotations

import json
from typing import Any

from support.broken.cases import Case
from support.factories import raw_tensor, safetensors_bytes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


def shard(*names: str) -> bytes:
    """A sound file of these tensors."""
    return safetensors_bytes({name: raw_tensor("F16", (4,), 16) for name in names})


_SHARDS = {"1.safetensors": shard("a", "b"), "2.safetensors": shard("c")}
_WHOLE = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def text(content: bytes, words: str) -> Case:
    """Two sound shards and this index."""
    return Case(_SHARDS | {INDEX: content}, INDEX, words)


def index(words: str, names: str = INDEX, **changes: Any) -> Case:
    """Two sound shards and an index that says something else of some tensors."""
    content = json.dumps({"weight_map": _WHOLE | changes}).encode()
    return Case(_SHARDS | {INDEX: content}, names, words)


def config(content: bytes, words: str) -> Case:
    """A sound file and this config.json."""
    return Case({"model.safetensors": shard("a"), CONFIG: content}, CONFIG, words)


_ABSENT = "names a file that is not in the folder"
_NO_MAP = "weight_map is not an object with entries"

INDEXES = {
    "index/not-json": text(b"weight_map", "not JSON"),
    "index/empty": text(b"", "not JSON"),
    "index/list": text(b"[]", "not a JSON object"),
    "index/bad-utf-8": text(b'{"weight_map": {"\xff": "1.safetensors"}}', "not UTF-8"),
    "index/byte-order-mark": text(b'\xef\xbb\xbf{"weight_map": {}}', "not JSON"),
    "index/nested-3000-levels": text(
        b'{"weight_map": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested"
    ),
    "index/tensor-twice": text(
        b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "'a' twice"
    ),
    "index/no-weight-map": text(b"{}", _NO_MAP),
    "index/empty-weight-map": text(b'{"weight_map": {}}', _NO_MAP),
    "index/weight-map-is-a-list": text(b'{"weight_map": ["a"]}', _NO_MAP),
    "index/file-is-a-number": index(_ABSENT, a=1),
    "index/file-is-null": index(_ABSENT, a=None),
    "index/file-is-a-list": index(_ABSENT, a=["1.safetensors"]),
    "index/absent-shard": index(_ABSENT, c="3.safetensors"),
    "index/other-case": index(_ABSENT, c="2.SAFETENSORS"),
    "index/parent-folder": index(_ABSENT, c="../parent-folder/2.safetensors"),
    "index/through-the-parent": index(_ABSENT, c="x/../../through-the-parent/2.safetensors"),
    "index/absolute-path": index(_ABSENT, c="/dev/zero"),
    "index/empty-name": index("an empty name", c=""),
    "index/a-dot": index(_ABSENT, c="."),
    "index/nul": index(_ABSENT, c="2.safetensors\0.txt"),
    "index/backslashes": index(_ABSENT, c=".\\2.safetensors"),
    "index/half-a-surrogate-pair": index(_ABSENT, c="\ud800"),
    "index/long-name": index(_ABSENT, c="x" * 2000),
    "index/not-safetensors": index("longer than it can be", INDEX, c=INDEX),
    "index/absent-tensor": index(
        "a tensor that the file does not have", "1.safetensors", d="1.safetensors"
    ),
    "index/tensor-in-another-shard": index(
        "the file does not have", "1.safetensors", c="1.safetensors"
    ),
    "index/tensor-in-two-shards": Case(
        {
            "1.safetensors": shard("a", "b"),
            "2.safetensors": shard("b", "c"),
            INDEX: json.dumps({"weight_map": _WHOLE}).encode(),
        },
        "2.safetensors",
        "tensor 'b': also in 1.safetensors",
    ),
    "index/absent": Case(dict(_SHARDS), "absent", "no index says which belong together"),
}

CONFIGS = {
    "config/not-json": config(b"{'a': 1}", "not JSON"),
    "config/empty": config(b"", "not JSON"),
    "config/list": config(b"[]", "not a JSON object"),
    "config/null": config(b"null", "not a JSON object"),
    "config/text": config(b'"text"', "not a JSON object"),
    "config/bad-utf-8": config(b'{"\xff": 1}', "not UTF-8"),
    "config/byte-order-mark": config(b"\xef\xbb\xbf{}", "not JSON"),
    "config/nested-3000-levels": config(b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested"),
    "config/nested-200-levels": config(b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested"),
    "config/number-of-5000-digits": config(b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    "config/trailing-comma": config(b'{"a": 1,}', "not JSON"),
}

NO_WEIGHTS = {
    "weights/none": Case({CONFIG: b"{}"}, "none", "no safetensors weights"),
    "weights/pickle-only": Case(
        {CONFIG: b"{}", "pytorch_model.bin": b"\x80\x02."}, "pickle-only", "pytorch_model.bin"
    ),
    "weights/in-a-folder-of-that-name": Case(
        {"model.safetensors/model.safetensors": shard("a")},
        "in-a-folder-of-that-name",
        "no safetensors weights",
    ),
}

CASES = INDEXES | CONFIGS | NO_WEIGHTS
