"""The tables that verify ends with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod

from rich.table import Table

from tq3.cli.cells import add, columns, facts
from tq3.units import counted, size
from tq3.verification.checks import Comparison, Verification

_WORST = 10
# Faults of one check that people read.
_ALIKE = 10
_NO_MANIFEST = "none: there is no manifest"


def of_verification(v: Verification) -> Iterator[Table]:
    """What was checked and the verdict, the largest errors, and what is wrong."""
    yield _verdict(v)
    if v.comparisons:
        yield _largest_errors(v.worst(_WORST))
    if rounded := v.rounded():
        yield _rounded(rounded[:_ALIKE])
    if v.faults:
        yield _faults(v)


def _verdict(v: Verification) -> Table:
    table = facts()
    add(table, "checkpoint", v.path)
    files = counted(v.n_files, "file")
    add(table, "files", f"{files}, {size(v.bytes_read)} read in {v.seconds:.2f} s")
    add(table, "tensors", f"{v.n_compressed} compressed, {v.n_kept} kept")
    why_none = "none: only the structure was looked at" if v.structure_only else _NO_MANIFEST
    add(table, "checksums", "of every file" if v.checksums else why_none)
    if v.source is not None:
        n_exact = sum(bool(line.exact) for line in v.comparisons)
        compared = f"{counted(len(v.comparisons), 'tensor')} compared, {n_exact} exact"
        rounded = f", {len(v.rounded())} rounded" if v.rounded() else ""
        add(table, "source", f"{v.source}: {compared}{rounded}")
    add(table, "peak memory", size(v.peak_memory_bytes))
    add(table, "verdict", "sound" if v.ok else f"not sound: {counted(len(v.faults), 'fault')}")
    return table


def _largest_errors(lines: list[Comparison]) -> Table:
    table = columns(
        "largest errors", "bits", "error", "expected", "limit", "cosine", "worst group", "where"
    )
    for line in lines:
        where = f"row {line.worst_row}, group {line.worst_group}"
        figures = (line.error, line.expected, line.limit, line.cosine, line.worst_group_error)
        add(table, line.tensor, str(line.bits), *map(_figure, figures), where)
    return table


def _rounded(lines: list[Comparison]) -> Table:
    table = columns("rounded", "stored", "values", "of", "by at most", "of the value")
    for line in lines:
        figures = (f"{value:.2g}" for value in (line.largest_change, line.largest_relative_change))
        numbers = (f"{line.n_rounded:,}", f"{prod(line.shape):,}")
        add(table, line.tensor, line.stored or "-", *numbers, *figures)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _faults(v: Verification) -> Table:
    table = columns("fault", "file", "tensor", "what")
    for check, faults in groupby(v.faults, key=lambda fault: fault.check):
        shown = [*faults]
        for fault in shown[:_ALIKE]:
            add(table, check, fault.file or "-", fault.tensor or "-", fault.text)
        if more := len(shown[_ALIKE:]):
            add(table, check, "-", "-", f"... and {more} more of {check} (--json has all)")
    return table
