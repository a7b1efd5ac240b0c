"""Whole runs of the writer over plans of tiny shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tq3.format.header import TensorInfo
from tq3.plan.plan import Plan, arrange, copy_task
from tq3.plan.sources import Located
from tq3.storage.writer import TargetFolder

MARKER = ("marker.json", "{}")

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system doesn't list open descriptors"
)


def plan_of(n_shards: int) -> Plan:
    """One tensor of eight bytes in each shard."""
    infos = (TensorInfo(f"t{i}", "U8", (8,)) for i in range(n_shards))
    return arrange((copy_task(Located(info, "in", 0), "why") for info in infos), 8)


def write_drafts(folder: TargetFolder, plan: Plan) -> None:
    """Every shard's draft, filled with its number."""
    for number, shard in enumerate(plan.shards):
        with folder.shard(number, shard) as file:
            for name, offset in file.offsets.items():
                file.write(offset, memoryview(bytes([number] * 8)))
                assert name in shard.offsets


def publish(
    out: Path,
    plan: Plan,
    *,
    overwrite: bool = False,
    copies: Mapping[str, Path] = MappingProxyType({}),
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A whole run of the writer."""
    source = out.parent / "source"
    with TargetFolder(out, source=source, overwrite=overwrite) as folder:
        for name, original in copies.items():
            folder.copy(name, original)
        write_drafts(folder, plan)
        folder.publish(plan, texts=texts, marker=MARKER)
