"""Fixtures of tests of runs: sound folders to copy, and blocks of any size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tq3
from support.factories import of_another_writer, tiny_checkpoint
from support.pipelines.beside import compressed
from support.pipelines.kinds import EVERY_KIND
from tq3.plan.plan import Task


@pytest.fixture
def set_block_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the blocks smaller, so that a small tensor has several."""
    return lambda n_bytes: monkeypatch.setattr(Task.blocks, "__defaults__", (n_bytes,))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound folders to copy: `one` shard, `two` shards, and every kind of tensor."""
    path = tmp_path_factory.mktemp("made")
    source = tiny_checkpoint(path / "source")
    (source / "tokenizer.json").write_text("{}")
    tq3.compress(source, path / "one")
    tq3.compress(source, path / "two", max_shard_size=60_000)
    kinds = tiny_checkpoint(path / "kinds-source", EVERY_KIND, config={"num_experts": 3})
    tq3.compress(kinds, path / "kinds")
    for folder in ("one", "two", "kinds"):
        of_another_writer(path / folder)
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the sound folders, to be spoiled."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return compressed(tmp_path_factory.mktemp("kinds"), EVERY_KIND)
