"""A verification needs little memory whatever the size of a tensor or of a piece."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.pipelines.large import LARGE, LIMIT_BYTES, large_checkpoint
from support.pipelines.spoiling import seal

import tq3
from tq3.codec.backend import available_backends

RUN = """
import sys, tq3
path, source = sys.argv[1:]
result = tq3.verify(path, source=source, workers=8)
assert result.ok and result.checksums, result.faults
assert result.bytes_read > 390_000_000
print(result.peak_memory_bytes)
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak"),
    pytest.mark.skipif(available_backends() == ("numpy",), reason="minutes without kernels"),
]


@pytest.mark.parametrize(("name", "shape"), LARGE.values(), ids=LARGE)
def test_large_tensors_and_pieces_need_less_than_the_limit(tmp_path, name, shape):
    source = large_checkpoint(tmp_path / "in", name, shape)
    tq3.compress(source, tmp_path / "out")
    seal(tmp_path / "out", piece_bytes=1 << 40)
    command = (sys.executable, "-c", RUN, tmp_path / "out", source)
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < LIMIT_BYTES
