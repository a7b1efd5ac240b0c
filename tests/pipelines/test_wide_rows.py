"""A padded row can't be cut: it is one block, and memory stays near what it and its output need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.factories import file_bytes

COLS = 2**25 + 1
SOURCE_BYTES = 2 * COLS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_one_giant_row_needs_little_more_than_itself(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    entry = {"dtype": "BF16", "shape": [1, COLS], "data_offsets": [0, SOURCE_BYTES]}
    with (source / "model.safetensors").open("wb") as file:
        file.write(file_bytes({"a.weight": entry}))
        file.truncate(file.tell() + SOURCE_BYTES)
    code = (
        "import sys, tq3; report = tq3.compress(*sys.argv[1:], workers=1);"
        "print(tq3.preview(sys.argv[1], workers=1).peak_memory_bytes, report.peak_memory_bytes)"
    )
    command = [sys.executable, "-c", code, source, tmp_path / "out"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    planned, needed = map(int, run.stdout.split())
    assert needed < planned < 1.5 * needed
