"""Checkpoints with a tensor larger than the memory that a run may take."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from support.factories import file_bytes

LIMIT_BYTES = 400 * 10**6
N_RANDOM = 1 << 20


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
