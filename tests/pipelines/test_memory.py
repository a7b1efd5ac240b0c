"""Memory stays small whatever the size of a tensor. Each run has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.pipelines.large import LARGE, LIMIT_BYTES, large_checkpoint

from tq3.codec.backend import available_backends

RUN = """
import sys, tq3
source, compressed, restored, backend = sys.argv[1:]
tq3.compress(source, compressed, workers=8, backend=backend)
report = tq3.restore(compressed, restored, workers=8, backend=backend)
assert "torch" not in sys.modules
print(report.peak_memory_bytes)
"""


def peak_bytes(path: Path, source: Path, backend: str) -> int:
    """Peak memory of a process that compresses and restores; the tensor must come back whole."""
    command = (sys.executable, "-c", RUN, source, path / "tq3", path / "back", backend)
    # Not here: Python looks for modules in its working folder first.
    run = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True, timeout=120)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, path / "back")]
    assert abs(sizes[0] - sizes[1]) < 1000
    return int(run.stdout)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks Linux for the peak"
)


@pytest.mark.skipif(available_backends() == ("numpy",), reason="minutes without kernels")
@pytest.mark.parametrize(("name", "shape"), LARGE.values(), ids=LARGE)
def test_a_tensor_of_300_megabytes_needs_less_than_the_limit(tmp_path, name, shape):
    source = large_checkpoint(tmp_path / "in", name, shape)
    assert (source / "model.safetensors").stat().st_size > 295 * 10**6
    assert peak_bytes(tmp_path, source, available_backends()[0]) < LIMIT_BYTES


def test_the_slow_codec_keeps_its_temporaries_small(tmp_path):
    source = large_checkpoint(tmp_path / "in", "a.weight", (10_000, 2048))
    assert peak_bytes(tmp_path, source, "numpy") < LIMIT_BYTES
