"""How fuzzers' bytes become files: in a form that a mutation leaves readable more often than not.

A file of weights is a byte n and the header's JSON text, with n zeros behind it; its length is
computed. With n = 255 the rest is the file as it is. A folder is several files, each behind a line
that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

BROKEN = Path(__file__).parents[2] / "broken"
_AS_IT_IS = 255
_LINE = b"\n%%"
_LARGEST_SEED = 20_000


def weights(data: bytes) -> bytes:
    """A safetensors file, sound or not."""
    if not data or data[0] == _AS_IT_IS:
        return data[1:]
    text = data[1:]
    return len(text).to_bytes(8, "little") + text + bytes(data[0])


def as_input(file: bytes) -> bytes:
    """The shortest input that stands for this file."""
    text, rest = file[8 : 8 + (n := int.from_bytes(file[:8], "little"))], file[8 + n :]
    is_plain = len(file) >= 8 and len(text) == n and len(rest) < _AS_IT_IS and not any(rest)
    return bytes([len(rest)]) + text if is_plain else bytes([_AS_IT_IS]) + file


def folder(data: bytes) -> dict[str, bytes]:
    """Name -> content; what stands before the first name is ignored."""
    files = {}
    for section in (b"\n" + data).split(_LINE)[1:]:
        name, _, content = section.partition(b"\n")
        # As a folder can have it: not empty, no "./", no "..".
        text = os.path.normpath("/" + name.decode("utf-8", "replace")).strip("/")
        files[text or "x"] = weights(content) if text.endswith(".safetensors") else content
    return files


def header_seeds() -> Iterator[bytes]:
    """The corpus' files of weights."""
    for path in sorted(BROKEN.rglob("*.safetensors")):
        if path.is_file() and path.stat().st_size < _LARGEST_SEED:
            yield as_input(path.read_bytes())


def folder_seeds() -> Iterator[bytes]:
    """The corpus' folders."""
    for path in sorted(BROKEN.glob("*/*/")):
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
        if all(file.stat().st_size < _LARGEST_SEED for file in files):
            yield b"".join(_section(file) for file in files)


def _section(file: Path) -> bytes:
    content = file.read_bytes()
    content = as_input(content) if file.suffix == ".safetensors" else content
    return _LINE + file.name.encode() + b"\n" + content
