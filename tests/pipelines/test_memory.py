"""Memory stays small whatever the size of a tensor. Each run has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from support.factories import file_bytes

from tq3.codec.backend import available_backends

LIMIT_BYTES = 400 * 10**6
N_RANDOM = 1 << 20

RUN = """
import sys, tq3
source, compressed, restored, backend = sys.argv[1:]
tq3.compress(source, compressed, workers=8, backend=backend)
report = tq3.restore(compressed, restored, workers=8, backend=backend)
assert "torch" not in sys.modules
print(report.peak_memory_bytes)
"""


def large_checkpoint(path: Path, name: str, shape: tuple[int, ...]) -> Path:
    """One large BF16 tensor, the same random megabytes again and again, and a compressed row."""
    n_bytes = 2 * prod(shape)
    entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, n_bytes]}
    row = {"dtype": "BF16", "shape": [1, 128], "data_offsets": [n_bytes, n_bytes + 256]}
    floats = np.random.default_rng(0).normal(0, 0.02, N_RANDOM).astype(np.float32)
    piece = (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        file.write(file_bytes({name: entry, "row.weight": row}))
        for start in range(0, n_bytes, len(piece)):
            file.write(piece[: n_bytes - start])
        file.write(piece[:256])
    return path


LARGE = {
    "kept and cast": ("model.embed_tokens.weight", (75_000, 2048)),
    "compressed": ("model.layers.0.mlp.up_proj.weight", (75_000, 2048)),
    "padded rows of megabytes": ("model.layers.0.mlp.up_proj.weight", (200, 750_001)),
    "experts": ("model.layers.0.mlp.experts.gate_up_proj", (64, 1024, 2304)),
}


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
