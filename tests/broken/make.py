"""Writes the corpus: `python tests/broken/make.py` makes every folder beside this file anew."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # when it is started as a program

import broken_checkpoints  # noqa: E402
import broken_folders  # noqa: E402
import broken_headers  # noqa: E402
import broken_sources  # noqa: E402

CASES = (
    broken_headers.CASES | broken_folders.CASES | broken_checkpoints.CASES | broken_sources.CASES
)


def write(folder: Path) -> None:
    """Every case in a folder of its own."""
    for name, case in CASES.items():
        for file, content in case.files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    for old in HERE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    write(HERE)
