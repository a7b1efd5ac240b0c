"""Manifests for folders, and ways to spoil a checkpoint so that one check must find it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from support.factories import Tensor, safetensors_bytes
from tq3.format.header import read_header
from tq3.format.manifest import FILE_NAME as MANIFEST
from tq3.format.manifest import Manifest, Piece, digest

Spoil = Callable[[Path], None]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"


def seal(folder: Path, piece_bytes: int = 1 << 20) -> Path:
    """Write a manifest of all files, each in pieces of this length."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        files[path.relative_to(folder).as_posix()] = tuple(
            Piece(start, len(part), digest(part))
            for start in range(0, len(data), piece_bytes)
            if (part := data[start : start + piece_bytes])
        )
    (folder / MANIFEST).write_text(Manifest("a test", files).to_json())
    return folder


def change_json(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file as `change` leaves or returns it."""
    value = json.loads((folder / name).read_text())
    changed = change(value)
    (folder / name).write_text(json.dumps(value if changed is None else changed))


def set_key(name: str, key: str, value: Any) -> Spoil:
    """A spoiler that sets one key of a JSON file; `tq3.shapes` is one inside another."""

    def spoil(folder: Path) -> None:
        def change(whole: Any) -> None:
            *outer, last = key.split(".")
            for step in outer:
                whole = whole[step]
            whole[last] = value

        change_json(folder, name, change)

    return spoil


def read_shard(file: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    return {
        name: Tensor(found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for name, found in safetensors.deserialize(file.read_bytes())
    }


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite the tensors of a folder with one shard."""
    tensors = read_shard(folder / SHARD)
    change(tensors)
    (folder / SHARD).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))


def changed_bytes(tensor: Tensor, index: int, value: float, dtype: str) -> Tensor:
    """The tensor with one other element."""
    values = np.frombuffer(tensor.data, dtype).copy()
    values[index] = value
    return Tensor(tensor.dtype, tensor.shape, values.tobytes())


def flip_in_tensor(file: Path, name: str, bit: int) -> None:
    """Flip one bit of a tensor; a negative number counts from its end."""
    entries = read_header(lambda at, n: file.read_bytes()[at : at + n], file.stat().st_size, "")
    n_bits = 8 * entries.tensors[name].n_bytes
    flip(file, 8 * entries.offsets[name] + bit % n_bits)


def flip(file: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (byte,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


def flip_in_header(folder: Path) -> None:
    flip(folder / SECOND, 8 * 9)


def cut(n_bytes: int, name: str = SECOND) -> Callable[[Path], None]:
    """Keep this many bytes; a negative number counts from the end."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])

    return spoil
