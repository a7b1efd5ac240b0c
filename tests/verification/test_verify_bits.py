"""With a manifest, any single flipped bit of any file is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.factories import contents, random_tensor, tiny_checkpoint
from support.pipelines.spoiling import flip, seal

import tq3

# Every bit of every file would take a minute, and JSON differs little from byte to byte.
STEP = {".safetensors": 1, ".json": 11, ".txt": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Compressed, kept and padded tensors of a few bytes, with a side file."""
    tensors = {
        "a.weight": random_tensor(1, 128, seed=1),
        "b.weight": random_tensor(2, 130, seed=2),
        "norm.weight": random_tensor(5, seed=3),
    }
    source = tiny_checkpoint(tmp_path / "in", tensors, config={})
    (source / "notes.txt").write_text("Hi")
    tq3.compress(source, tmp_path / "out", group_size=64)
    return seal(tmp_path / "out", 100)


@pytest.mark.slow
def test_every_flipped_bit_is_found(folder):
    assert tq3.verify(folder).ok
    missed, n = [], 0
    for name, data in contents(folder).items():
        for bit in range(0, 8 * len(data), STEP[Path(name).suffix]):
            flip(folder / name, bit)
            if tq3.verify(folder, workers=1).ok:
                missed.append((name, bit))
            flip(folder / name, bit)
            n += 1
    assert missed == []
    assert n > 5000
    assert tq3.verify(folder).ok
