"""Runs that are divided into parts, and what joins them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tq3
from tq3.errors import BadInput
from tq3.events import Report
from tq3.storage.parts import part_folder, parts_in

# Two findings at the most, each with others that it makes: more rounds than that are none's fault.
_ROUNDS = 12


def run_parts(
    source: Path, out: Path, of: int, numbers: Iterable[int] | None = None, **options: Any
) -> list[Report]:
    """Each of these parts, one after the other; all of them where none are named."""
    order = range(1, of + 1) if numbers is None else numbers
    return [tq3.compress(source, out, part=(number, of), **options) for number in order]


def join(source: Path, out: Path, of: int, **options: Any) -> int:
    """Finish, with the parts run again as long as values ask for it; how often that was."""
    for rounds in range(_ROUNDS):
        try:
            tq3.finish(out)
        except BadInput as error:
            assert "run again" in str(error), error
            run_parts(source, out, of, **options)
        else:
            return rounds
    raise AssertionError("parts have no end")


def drafts_of(out: Path) -> list[Path]:
    """The drafts of shards that parts wrote, by part and shard."""
    folders = (part_folder(out, part) for part in parts_in(out))
    return [path for folder in folders for path in sorted(folder.glob("model-*.part"))]
