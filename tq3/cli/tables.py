"""The tables that commands end with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from tq3.cli.units import count, gigabytes
from tq3.pipelines.describe import Description
from tq3.pipelines.events import Report


def of_report(report: Report, out: Path) -> Table:
    """The figures of a finished run."""
    table = _facts()
    table.add_row("written", str(out))
    sizes = f"{gigabytes(report.source_bytes)} -> {gigabytes(report.output_bytes)}"
    table.add_row("size", sizes if report.restored else f"{sizes}, ratio {report.ratio:.2f}")
    if report.restored:
        table.add_row("tensors", f"{report.n_compressed} decoded, {report.n_kept} copied")
    else:
        compressed = report.compressed_bits_per_weight
        inner = f" ({compressed:.2f} where compressed)" if compressed else ""
        table.add_row("bits a weight", f"{report.bits_per_weight:.2f}{inner}")
        table.add_row("tensors", f"{report.n_compressed} compressed, {report.n_kept} kept")
    if report.mean_error is not None:
        worst = f"worst {report.worst_error:.4f} in {report.worst_tensor}"
        table.add_row("relative error", f"mean {report.mean_error:.4f}, {worst} (sampled)")
    speed = f"{report.seconds:.2f} s, {report.gb_per_second:.2f} GB/s"
    table.add_row("time", f"{speed}, {report.workers} workers, backend {report.backend}")
    table.add_row("peak memory", gigabytes(report.peak_memory_bytes))
    if report.left_out:
        table.add_row("not copied", "\n".join(_left_out(report.left_out)))
    return table


def _left_out(left_out: dict[str, str]) -> Iterator[str]:
    """Files with the reason, those of a folder in one line."""
    together = Counter(
        (name.split("/")[0] if "/" in name else name, "/" in name, why)
        for name, why in left_out.items()
    )
    for (name, is_folder, why), number in together.items():
        files = "1 file" if number == 1 else f"{number} files"
        yield f"{name}/ ({why}, {files})" if is_folder else f"{name} ({why})"


def of_description(description: Description, *, tensors: bool) -> Iterator[Table]:
    """Facts, classes, what is kept and why, and with `tensors` a line for every tensor."""
    yield _overview(description)
    yield _classes(description)
    if description.n_kept:
        yield _kept(description)
    if tensors:
        yield _tensors(description)


def _overview(d: Description) -> Table:
    table = _facts()
    kind = "what compress would write" if d.planned else "TQ3 checkpoint"
    table.add_row("checkpoint", f"{d.path}: {kind}")
    table.add_row("format", f"tq3_native, {d.bits} bits, groups of {d.group_size}")
    if d.original_model:
        revision = f" at {d.source_revision}" if d.source_revision else ""
        dtype = f" ({d.source_dtype})" if d.source_dtype else ""
        table.add_row("made from", f"{d.original_model}{revision}{dtype} by {d.writer or '?'}")
    size = gigabytes(d.n_bytes)
    if d.source_bytes:
        size = f"{gigabytes(d.source_bytes)} -> {size}, ratio {d.source_bytes / d.n_bytes:.2f}"
    table.add_row("size", size)
    table.add_row("bits a weight", f"{d.bits_per_weight:.2f}")
    table.add_row("tensors", f"{d.n_compressed} compressed, {d.n_kept} kept")
    shards = [f"{name}  {gigabytes(size)}" for name, size in d.shards.items()]
    table.add_row("files", "\n".join(shards))
    if d.peak_memory_bytes:
        table.add_row("peak memory", f"about {gigabytes(d.peak_memory_bytes)}")
    return table


def _classes(d: Description) -> Table:
    table = _columns("class", "compressed", "kept", "weights", "size", "bits a weight")
    for line in d.classes:
        table.add_row(
            line.label,
            str(line.n_compressed),
            str(line.n_kept),
            count(line.n_weights),
            gigabytes(line.n_bytes),
            f"{line.bits_per_weight:.2f}",
        )
    return table


def _kept(d: Description) -> Table:
    table = _columns("kept because", "tensors", "size")
    for reason, (number, n_bytes) in d.kept_reasons.items():
        table.add_row(reason, str(number), gigabytes(n_bytes))
    return table


def _tensors(d: Description) -> Table:
    table = _columns("tensor", "shape", "stored", "size", "why")
    for line in d.tensors:
        table.add_row(
            line.name,
            "x".join(map(str, line.shape)),
            f"{line.bits} bits" if line.bits else line.dtype,
            gigabytes(line.n_bytes),
            line.reason,
        )
    return table


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        numeric = name in ("compressed", "kept", "weights", "size", "bits a weight", "tensors")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    return table
