"""How long a kernel's first call waits for the compiler, and how long one of a later process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gpu.section import Row, Section

# What a model of 3 bits in groups of 128 needs for one token and for many.
INSTANCES = (
    ("rotate_quantise", "rotate_quantise<Dtype::kBF16, 128, 128>"),
    ("multiply", "multiply<Dtype::kBF16, 3, 128, 1>"),
    ("multiply", "multiply<Dtype::kBF16, 3, 128, 8>"),
    ("split", "multiply_terms<3, 128, 1>"),
    ("split", "add_terms<Dtype::kBF16>"),
    ("rotate", "rotate<Dtype::kBF16, 128, 128>"),
    ("decode", "decode<Dtype::kBF16, 3, 128>"),
)
COLUMNS = ("NVRTC ms", "from the disk ms")
Compile = Callable[[str, str, Path], object]


def measure(compile: Compile, instances: Iterable[tuple[str, str]] = INSTANCES) -> Section:
    """compile: of a kernel, an instance, a folder for codes, which is empty at first"""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kernel, instance in instances:
            times = [_milliseconds(compile, kernel, instance, Path(folder)) for _ in COLUMNS]
            rows.append({"instance": instance, **dict(zip(COLUMNS, times, strict=True))})
    rows.append({"instance": "all", **{name: sum(row[name] for row in rows) for name in COLUMNS}})
    return Section("Compilation", rows, [], [])


def _milliseconds(compile: Compile, kernel: str, instance: str, folder: Path) -> float:
    start = time.perf_counter()
    compile(kernel, instance, folder)
    return (time.perf_counter() - start) * 1e3
