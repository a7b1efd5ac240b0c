"""Every file and folder that is written has the permissions that the user's umask gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.factories import tiny_checkpoint

import tq3


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """That of the process, for the time of a test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The folder and all below it: path -> permissions, as chmod takes them."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}


def expected(folder: Path, umask: int) -> dict[str, str]:
    """What the system gives to new files and folders."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(p): oct((0o777 if p.is_dir() else 0o666) & ~umask) for p in paths}


@pytest.mark.parametrize("source_mode", [0o400, 0o666])
def test_files_and_folders_are_those_of_the_umask_whatever_the_source(tmp_path, umask, source_mode):
    source = tiny_checkpoint(tmp_path / "in", shards=2)
    (source / "sub").mkdir()
    for name in ("tokenizer.json", "sub/notes"):
        (source / name).write_text("{}")
    for path in source.rglob("*"):
        if path.is_file():
            path.chmod(source_mode)
    tq3.compress(source, tmp_path / "deep" / "out", max_shard_size=50_000)
    tq3.restore(tmp_path / "deep" / "out", tmp_path / "deep" / "back", max_shard_size=50_000)
    written = modes(tmp_path / "deep")
    assert len(written) > 15
    assert written == expected(tmp_path / "deep", umask)
