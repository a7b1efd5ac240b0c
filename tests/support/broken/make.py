"""The corpus of tests/broken: `PYTHONPATH=tests python -m support.broken.make` makes it anew."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.broken import (
    broken_checkpoints,
    broken_codes,
    broken_folders,
    broken_headers,
    broken_sources,
)

FOLDER = Path(__file__).parents[2] / "broken"

CASES = (
    broken_headers.CASES
    | broken_folders.CASES
    | broken_checkpoints.CASES
    | broken_sources.CASES
    | broken_codes.CASES
)


def write(folder: Path) -> None:
    """Every case in a folder of its own."""
    for name, case in CASES.items():
        for file, content in case.files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    for old in FOLDER.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    write(FOLDER)
