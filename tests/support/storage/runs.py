"""Whole runs of the writer over plans of tiny shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from support.factories import contents
from tq3.format.checkpoint import Located
from tq3.format.header import TensorInfo
from tq3.plan.identity import Identity
from tq3.plan.plan import Plan, arrange, copy_task
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.journal import DoneBlock
from tq3.storage.local import LocalFiles
from tq3.storage.target import TargetFolder

IDENTITY = Identity("compress", {"in": "as it was"}, {"bits": 3}, "a digest")
MARKER = ("marker.json", "{}")

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system doesn't list open descriptors"
)


def plan_of(n_shards: int) -> Plan:
    """One tensor of eight bytes in each shard."""
    infos = (TensorInfo(f"t{i}", "U8", (8,)) for i in range(n_shards))
    return arrange((copy_task(Located(info, "in", 0), "why") for info in infos), 8)


def target(
    path: Path,
    identity: Identity = IDENTITY,
    *,
    source: Path | None = None,
    overwrite: bool = False,
    resume: bool = True,
) -> TargetFolder:
    """A target folder whose source lies beside it."""
    source = source or path.parent / "source"
    return TargetFolder(path, identity, source=source, overwrite=overwrite, resume=resume)


def parts(path: Path) -> Iterator[bytes]:
    """A file to copy, piece by piece."""
    return LocalFiles(path.parent).parts(path.name)


def write_draft(folder: TargetFolder, plan: Plan, number: int) -> None:
    """A shard's draft, filled with its number."""
    with folder.shard(plan, number) as file:
        for name, offset in file.offsets.items():
            piece = file.write(offset, memoryview(bytes([number] * 8)))
            file.finish(DoneBlock(name, 0, (piece,)))


def done(folder: TargetFolder, plan: Plan, number: int) -> bool:
    """Whether a shard, of one block, need not be written."""
    folder.go_on()
    folder.forget_damaged(plan, range(len(plan.shards)))
    return bool(folder.journal.blocks(number))


def write_drafts(folder: TargetFolder, plan: Plan) -> None:
    """Every shard's draft that is not there."""
    for number in range(len(plan.shards)):
        if not done(folder, plan, number):
            write_draft(folder, plan, number)


def publish(
    out: Path,
    plan: Plan,
    *,
    overwrite: bool = False,
    copies: Mapping[str, Path] = MappingProxyType({}),
    texts: Mapping[str, str] = MappingProxyType({}),
    writer: str | None = None,
) -> None:
    """A whole run of the writer."""
    with target(out, overwrite=overwrite) as folder:
        for name, original in copies.items():
            folder.copy(name, parts(original))
        write_drafts(folder, plan)
        folder.publish(plan, texts=texts, marker=MARKER, writer=writer)


def visible(out: Path) -> dict[str, bytes]:
    """What is in the folder without the working folder."""
    found = contents(out).items()
    return {name: data for name, data in found if not name.startswith(WORK_FOLDER)}
