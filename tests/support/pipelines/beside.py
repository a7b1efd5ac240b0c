"""A source, what compress makes of it, and what verify says of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tq3
from support.factories import Tensor, of_another_writer, tiny_checkpoint

GROUP = 128
CONFIG = {"num_experts": 3}


def compressed(path: Path, tensors: dict[str, Tensor], **options: Any) -> tuple[Path, Path]:
    """A source and what compress makes of it; without checksums, which would tell every change."""
    source = tiny_checkpoint(path / "source", tensors, config=CONFIG)
    tq3.compress(source, path / "tq3", **options)
    return source, of_another_writer(path / "tq3")


def compare(path: Path, source: Path, **options: Any) -> tq3.Verification:
    return tq3.verify(path, source=source, **options)


def checks(result: tq3.Verification) -> list[str]:
    return [fault.check for fault in result.faults]
