"""After a power loss at any moment the same run goes on and writes the right bytes.

Simulated by `power_loss`: a block may be trusted only if its bytes were flushed before its record.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from threading import Lock

import pytest
from support.factories import contents, mixed_tensors, tiny_checkpoint, too_large, visible
from support.pipelines.interrupting import BLOCK_BYTES, SHARD_BYTES
from support.power_loss import Disk, watched_disk

import tq3

STATES = 25
MANIFEST = "tq3_manifest.json"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="looks into open files by Linux's /proc"
)


def compress(path: Path, disk: Path, **options: object) -> tq3.Report:
    """The run that loses power, and the one that goes on."""
    options = {"max_shard_size": SHARD_BYTES, **options}
    return tq3.compress(path / "in", disk / "deep" / "out", **options)  # type: ignore[arg-type]


def older(whole: dict[str, bytes], out: Path) -> dict[str, bytes]:
    """A checkpoint of the same names, sizes and headers, and of other values."""
    for name, data in whole.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        flipped = data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data
        (out / name).write_bytes(flipped)
    return contents(out)


def check_marker(seen: dict[str, bytes], *complete: dict[str, bytes]) -> None:
    """With tq_config.json a folder is a complete checkpoint, save for the manifest at times."""
    if "tq_config.json" in seen:
        needed = [{name: files[name] for name in files.keys() - {MANIFEST}} for files in complete]
        assert any(files.items() <= seen.items() for files in needed)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_power_loss_leaves_is_continued_to_the_right_bytes(
    tmp_path, set_block_bytes, monkeypatch, overwrite, workers
):
    set_block_bytes(BLOCK_BYTES)
    monkeypatch.setattr("tq3.storage.shard_file._FLUSH_SECONDS", 0.001)
    source = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 1), shards=2)
    (source / "tokenizer.json").write_text("{}")
    compress(tmp_path, tmp_path / "alone")
    whole = contents(tmp_path / "alone" / "deep" / "out")
    rng, lock = random.Random(workers), Lock()
    states: list[Path] = []

    def lose_power(disk: Disk) -> None:
        with lock:
            state = tmp_path / f"state{len(states)}"
            states.append(state)
            disk.write_what_is_left(state, rng)

    disk = tmp_path / "disk"
    disk.mkdir()
    old = older(whole, disk / "deep" / "out") if overwrite else whole
    with watched_disk(disk, lose_power):
        compress(tmp_path, disk, overwrite=overwrite, workers=workers)
    assert contents(disk / "deep" / "out") == whole
    shares = []
    for state in states:
        out = state / "deep" / "out"
        check_marker(visible(out), old, whole)
        if visible(out) == whole and not (out / ".tq3.part" / "journal").exists():
            continue
        shares.append(compress(tmp_path, state, overwrite=overwrite).share_before)
        assert contents(out) == whole, state
        shutil.rmtree(state)
    assert len(shares) >= STATES
    assert max(shares) == 1
    assert len({share for share in shares if 0 < share < 1}) > 1
