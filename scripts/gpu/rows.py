"""What is measured: a row for each case, and in a file a line of JSON for each row.

A line is written as soon as its row is measured, so that whoever is killed loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Cells by the names of columns, which say units. "section" and "case" name a row, "s" are seconds
# that it took in all; "fault" says what went wrong, "skipped" why nothing was measured.
Row = dict[str, Any]
# A case's name, and what measures it.
Case = tuple[str, Callable[[], Row]]
Cases = Iterator[Case]


class Skipped(Exception):
    """Why a case can't be measured here, as a sentence."""


def append(file: Path, row: Row) -> None:
    """Add a line. What a kill left of an unfinished one stays a line of its own."""
    with file.open("a+b") as out:
        if out.seek(0, 2) and not _ends_a_line(out):
            out.write(b"\n")
        out.write(json.dumps(row).encode() + b"\n")


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def read(file: Path) -> list[Row]:
    """All rows; of those with the same section and case, as of several runs, the last."""
    rows = filter(None, map(parsed, file.read_text().splitlines()))
    return list({(row["section"], row["case"]): row for row in rows}.values())


def parsed(line: str) -> Row | None:
    """None for what is no row: a line that a kill cut off, or what somebody else printed."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
