"""Inputs that would take all memory or time: refused within a gigabyte and some seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import file_bytes, random_tensor, safetensors_bytes

GIB = 2**30
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from tq3.__main__ import main
main()
"""
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
_HEADER_BYTES = 100_000_000  # the most that is read


def sparse(path: Path, n_bytes: int, start: bytes = b"") -> None:
    """A file that is larger than what it takes."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(n_bytes)


def header(text: bytes) -> Callable[[Path], str]:
    """A file of a header alone."""

    def make(folder: Path) -> str:
        (folder / WEIGHTS).write_bytes(file_bytes(text))
        return WEIGHTS

    return make


def json_file(name: str, n_bytes: int, start: bytes = b"") -> Callable[[Path], str]:
    """A sound shard beside this JSON file, the rest of which is sparse."""

    def make(folder: Path) -> str:
        shard = "1.safetensors" if name == INDEX else WEIGHTS
        (folder / shard).write_bytes(safetensors_bytes({"a": random_tensor(2)}))
        sparse(folder / name, n_bytes or len(start), start)
        return name

    return make


def sparse_header(folder: Path) -> str:
    """A terabyte without a block on the disk."""
    sparse(folder / WEIGHTS, 2**40, _HEADER_BYTES.to_bytes(8, "little"))
    return WEIGHTS


def huge_tensor(folder: Path) -> str:
    """Its shape and its offsets agree, in a file of a hundred bytes."""
    entry = {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}
    (folder / WEIGHTS).write_bytes(file_bytes({"a.weight": entry}))
    return WEIGHTS


def million_entries() -> bytes:
    """An index of absent tensors in a shard that is there."""
    return json.dumps({"weight_map": {f"t{i}": "1.safetensors" for i in range(10**6)}}).encode()


BOMBS: dict[str, tuple[Callable[[Path], str], str]] = {
    "a header of brackets": (header(b"[" * _HEADER_BYTES), "too large"),
    "a header of empty lists": (header(b"[" + b"[]," * (_HEADER_BYTES // 4)), "too large"),
    "a header of objects": (header(b'{"":' * (_HEADER_BYTES // 5)), "too large"),
    "a header of one name": (header(b'{"' + b"a" * 90_000_000 + b'": 1}'), "just dtype"),
    "a header of one number": (header(b'{"a":' + b"9" * 90_000_000 + b"}"), "not JSON"),
    "a sparse header": (sparse_header, "not JSON"),
    "a tensor of an exabyte": (huge_tensor, "do not fill the file"),
    "a config.json of 10 GiB": (json_file(CONFIG, 10 * GIB), "too large"),
    "a config.json of zeros": (json_file(CONFIG, 2**27), "not JSON"),
    "an index of brackets": (json_file(INDEX, 0, b"[" * 2**26), "too large"),
    "an index of a terabyte": (json_file(INDEX, 2**40), "too large"),
    "an index of a million": (json_file(INDEX, 0, million_entries()), "does not have"),
}


@pytest.mark.parametrize(("make", "words"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_within_a_gigabyte_and_some_seconds(tmp_path, make, words):
    name = make(tmp_path)
    command = (sys.executable, "-c", LIMITED, "inspect", tmp_path)
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (3, ""), result.stderr[-2000:]
    (sentence,) = result.stderr.splitlines()
    assert words in sentence
    assert name in sentence or "1.safetensors" in sentence
    assert len(sentence) < 1500
