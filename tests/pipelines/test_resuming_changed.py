"""A run that would write other bytes does not go on from an unfinished one, and says why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import (
    Tensor,
    contents,
    mixed_tensors,
    random_tensor,
    spoiled,
    tiny_checkpoint,
)
from support.pipelines.interrupting import BLOCK_BYTES, SHARD_BYTES, counted_blocks, end_after

import tq3
from tq3.errors import UsageError

FILE = "model-00002-of-00003.safetensors"


@pytest.fixture(autouse=True)
def patient_small_blocks(set_block_bytes, monkeypatch) -> None:
    """Many blocks in small tensors; a busy disk has time for the last flush."""
    set_block_bytes(BLOCK_BYTES)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)


def compress(path: Path, **options: object) -> tq3.Report:
    """What is interrupted in these tests, or with options a little of something else."""
    options = {"max_shard_size": SHARD_BYTES, **options}
    return tq3.compress(path / "in", path / "out", **options)  # type: ignore[arg-type]


def interrupt(path: Path) -> Path:
    """Such a run, ended when about half is done; gives its target."""
    tiny_checkpoint(path / "in", mixed_tensors(), shards=3)
    recipe = tq3.Recipe(max_shard_bytes=SHARD_BYTES)
    end_after(tq3.compress_checkpoint(path / "in", path / "out", recipe, workers=1), 25)
    return path / "out"


def with_options(**options: object) -> Callable[..., object]:
    """The same source, compressed in another way."""
    return lambda path, **more: compress(path, **options, **more)


def rewritten(change: Callable[[Path], object]) -> Callable[..., object]:
    """The source is another one before it is compressed as before."""

    def run(path: Path, **more: object) -> tq3.Report:
        if not (path / "changed").exists():
            change(path / "in")
            (path / "changed").touch()
        return compress(path, **more)

    return run


def touch(source: Path) -> None:
    """A file of another time."""
    os.utime(source / FILE, ns=(0, 10**18 + 5))


def replace(source: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights in as many shards, with the times of those before."""
    times = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    tiny_checkpoint(source, tensors, shards=3)
    for path, time in times.items():
        os.utime(path, ns=(time, time))


def enlarge(source: Path) -> None:
    """A file of another size, and the same time."""
    replace(source, mixed_tensors() | {"layers.3.scale": random_tensor(901, dtype="F16")})


def refill(source: Path) -> None:
    """The same sizes and times, other values."""
    one = mixed_tensors()["layers.0.up.weight"]
    replace(source, mixed_tensors() | {"layers.0.up.weight": spoiled(one, (3, 5), 0.5)})


def deal_anew(source: Path) -> None:
    """The same tensors in other files."""
    for path in source.glob("model*"):
        path.unlink()
    tiny_checkpoint(source, mixed_tensors(), shards=2)


def restore(path: Path, **more: object) -> tq3.Report:
    """The other pipeline, into the same folder."""
    if not (path / "tq3").exists():
        tq3.compress(path / "in", path / "tq3")
    return tq3.restore(path / "tq3", path / "out", **more)  # type: ignore[arg-type]


CHANGES: dict[str, tuple[Callable[..., object], str]] = {
    "bits": (with_options(bits=4), "--bits 3 became --bits 4"),
    "group size": (with_options(group_size=64), "--group-size 128 became --group-size 64"),
    "keep": (with_options(keep=["*.up.*"]), r"no --keep became --keep \*\.up\.\*"),
    "keep dtype": (
        with_options(keep_dtype="source"),
        "--keep-dtype float16 became --keep-dtype source",
    ),
    "shard size": (
        with_options(max_shard_size=30_000),
        "--max-shard-size 8kB became --max-shard-size 30kB",
    ),
    "scale": (with_options(scale="norm"), "--scale search became --scale norm"),
    "norms": (with_options(norms="float16"), "--norms float32 became --norms float16"),
    "time": (rewritten(touch), f"{FILE} .* became .* of 2001-09-09 01:46:40.000000005 UTC"),
    "size": (rewritten(enlarge), r"model-00003-of-00003.safetensors (\d+) bytes of .* became "),
    "values": (rewritten(refill), "tensor 'layers.0.up.weight' has other values"),
    "shards": (rewritten(deal_anew), "model-00001-of-00003.safetensors .* became not there"),
    "command": (restore, "command compress became restore"),
}


@pytest.mark.parametrize(("run", "difference"), CHANGES.values(), ids=CHANGES)
def test_a_difference_is_named_and_overwrite_starts_anew(tmp_path, run, difference):
    out = interrupt(tmp_path)
    left = contents(out)
    with pytest.raises(UsageError, match="an unfinished run is in the target") as caught:
        run(tmp_path)
    assert caught.value.exit_code == 2
    assert re.match(difference, str(caught.value.found)), caught.value.found
    assert "--overwrite" in str(caught.value.fix)
    assert contents(out) == left
    with counted_blocks() as anew:
        run(tmp_path, overwrite=True)
    result = contents(out)
    out.rename(tmp_path / "anew")
    with counted_blocks() as all_of_them:
        run(tmp_path)
    assert contents(out) == result
    assert sorted(anew) == sorted(all_of_them)


@pytest.mark.parametrize(("run", "difference"), CHANGES.values(), ids=CHANGES)
def test_without_resume_no_difference_matters(tmp_path, run, difference):
    out = interrupt(tmp_path)
    run(tmp_path, resume=False)
    result = contents(out)
    out.rename(tmp_path / "anew")
    run(tmp_path)
    assert contents(out) == result


def test_what_was_refused_once_still_goes_on_when_the_change_is_undone(tmp_path):
    out = interrupt(tmp_path)
    with pytest.raises(UsageError):
        compress(tmp_path, bits=2)
    assert compress(tmp_path).share_before > 0.3
    result = contents(out)
    out.rename(tmp_path / "resumed")
    compress(tmp_path)
    assert contents(out) == result


def test_side_files_may_change_between_the_runs(tmp_path):
    source, out = tiny_checkpoint(tmp_path / "in", mixed_tensors(), shards=3), tmp_path / "out"
    for name in ("gone", "changed"):
        (source / name).write_text("before")
    interrupt(tmp_path)
    (source / "gone").unlink()
    (source / "changed").write_text("after")
    (source / "config.json").write_text('{"other": 1}')
    assert compress(tmp_path).share_before > 0.3
    result = contents(out)
    assert result["changed"] == b"after"
    assert b"other" in result["config.json"]
    out.rename(tmp_path / "resumed")
    compress(tmp_path)
    assert contents(out) == result


def test_a_journal_of_another_version_is_named(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tq3.plan.identity.Identity.to_record", lambda _: {"versions": "0"})
        interrupt(tmp_path)
    with pytest.raises(UsageError, match="versions 0 became format 1, journal 2"):
        compress(tmp_path)
    compress(tmp_path, overwrite=True)
