"""Lines that prove themselves: a checksum, then JSON. A torn one ends the reading."""

from __future__ import annotations

import json
from typing import Any

from tq3.format.manifest import digest


def record_line(value: Any) -> bytes:
    """A record as it is appended to a file."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return f"{digest(text)} ".encode() + text + b"\n"


def read_records(data: bytes) -> tuple[list[Any], int]:
    """The sound records from the start on, and how many bytes they take."""
    values: list[Any] = []
    length = 0
    while (end := data.find(b"\n", length)) >= 0:
        checksum, _, text = data[length:end].partition(b" ")
        if checksum != digest(text).encode():
            break
        values.append(json.loads(text))
        length = end + 1
    return values, length
