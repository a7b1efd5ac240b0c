"""The tables that compress, finish, restore, inspect and push end with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from tq3.cli.cells import add, columns, facts
from tq3.events import Report
from tq3.format.parts import numbers_in_words
from tq3.format.recipe import Code
from tq3.pipelines.description import Description
from tq3.pipelines.standing import Standing
from tq3.publication.result import Publication
from tq3.units import count, counted, size

_SCALES = {"search": "searched for the smallest error", "norm": "from the norm of each group"}
# What codes stand for -> who reads them.
_OWN_READERS: dict[Code, str] = {
    "scalar": "tq3's own: tq3.load, vLLM with its plugin, tq3 restore",
    "trellis": "tq3 restore, verify and eval; no host yet",
}
_EVERY_READER = "tq3's own, and others of the published format"


def of_report(report: Report, out: Path) -> Table:
    """The figures of a finished run."""
    table = facts()
    add(table, "written", f"part {report.part} of {out}" if report.part else str(out))
    sizes = f"{size(report.source_bytes)} -> {size(report.output_bytes)}"
    add(table, "size", sizes if report.restored else f"{sizes}, ratio {report.ratio:.2f}")
    if report.restored:
        add(table, "tensors", f"{report.n_compressed} decoded, {report.n_kept} copied")
    else:
        compressed = report.compressed_bits_per_weight
        inner = f" ({compressed:.2f} where compressed)" if compressed else ""
        add(table, "bits a weight", f"{report.bits_per_weight:.2f}{inner}")
        add(table, "tensors", f"{report.n_compressed} compressed, {report.n_kept} kept")
    if report.mean_error is not None:
        worst = f"worst {report.worst_error:.4f} in {report.worst_tensor}"
        add(table, "relative error", f"mean {report.mean_error:.4f}, {worst} (sampled)")
    speed = f"{report.seconds:.2f} s, {report.gb_per_second:.2f} GB/s"
    add(table, "time", f"{speed}, {counted(report.workers, 'worker')}, backend {report.backend}")
    if report.bytes_received is not None:
        add(table, "network", f"{size(report.bytes_received)} received")
    add(table, "peak memory", size(report.peak_memory_bytes))
    if report.part:
        add(table, "to do", f"tq3 finish {out}, when all {report.part.of} parts stand")
    if report.left_out:
        add(table, "not copied", list(_left_out(report.left_out)))
    return table


def of_standing(standing: Standing) -> Table:
    """Which parts of a divided run stand, and what is wrong with the others."""
    table = facts()
    add(table, "unfinished", standing.path)
    shown = numbers_in_words(sorted(standing.whole)) or "none"
    add(table, "parts that stand", f"{shown} of {standing.of}, {size(standing.n_bytes)} written")
    for number, why in sorted(standing.faults.items()):
        add(table, f"part {number}", why)
    if not standing.faults:
        add(table, "to do", f"tq3 finish {standing.path}")
    return table


def _left_out(left_out: dict[str, str]) -> Iterator[str]:
    """Files with the reason, those of a folder in one line."""
    together = Counter(
        (name.split("/")[0] if "/" in name else name, "/" in name, why)
        for name, why in left_out.items()
    )
    for (name, is_folder, why), number in together.items():
        yield f"{name}/ ({why}, {counted(number, 'file')})" if is_folder else f"{name} ({why})"


def of_description(description: Description, *, tensors: bool) -> Iterator[Table]:
    """Facts, classes, what is kept and why, and with `tensors` a line for every tensor."""
    yield _overview(description)
    yield _classes(description)
    if description.choice.recipe or len(description.widths) > 1:
        yield _roles(description)
    if description.n_kept:
        yield _kept(description)
    if tensors:
        yield _tensors(description)


def of_publication(p: Publication) -> Table:
    """What was uploaded, or would be, and where it is."""
    table = facts()
    add(table, "checkpoint", p.path)
    seen_by = "private" if p.private else "public"
    add(table, "would go to" if p.planned else "repository", f"{p.repo_id} ({seen_by})")
    add(table, "at", p.url)
    add(table, "revision", p.revision)
    label = "to upload" if p.planned else "uploaded"
    for name, files in ((label, p.uploaded), ("there already", p.unchanged)):
        add(table, name, f"{counted(len(files), 'file')}, {size(sum(files.values()))}")
    if p.planned and p.uploaded:
        add(table, "", [f"{name}  {size(n_bytes)}" for name, n_bytes in p.uploaded.items()])
    add(table, "card", p.card)
    if p.others:
        add(table, "also there", list(p.others))
    if not p.planned:
        add(table, "compared", "sizes and hashes of all files: as in the folder")
    return table


def _overview(d: Description) -> Table:
    table = facts()
    kind = "what compress would write" if d.planned else "TQ3 checkpoint"
    add(table, "checkpoint", f"{d.path}: {kind}")
    add(table, "format", f"{d.format}, {d.widths_text} bits, groups of {d.group_size}")
    _add_coding(table, d)
    for name, text in (("recipe", d.choice.recipe), ("target", d.unreachable_target)):
        if text:
            add(table, name, text)
    if d.original_model:
        revision = f" at {d.source_revision}" if d.source_revision else ""
        dtype = f" ({d.source_dtype})" if d.source_dtype else ""
        add(table, "made from", f"{d.original_model}{revision}{dtype} by {d.writer or '?'}")
    sizes = size(d.n_bytes)
    if d.source_bytes and d.n_bytes:
        sizes = f"{size(d.source_bytes)} -> {sizes}, ratio {d.source_bytes / d.n_bytes:.2f}"
    add(table, "size", sizes)
    allowed = d.choice.allowed_bits_per_weight
    inner = f" ({allowed:.3f} where it may be compressed)" if d.choice.recipe and allowed else ""
    add(table, "bits a weight", f"{d.bits_per_weight:.2f}{inner}")
    if d.choice.recipe and d.choice.loss is not None:
        add(table, "expected loss", f"{d.choice.loss:.2f} of that at 3 bits throughout")
    add(table, "tensors", f"{d.n_compressed} compressed, {d.n_kept} kept")
    if error := d.measured_error:
        shown = f"mean {error.mean:.4f}, worst {error.worst:.4f} (sampled)"
        add(table, "relative error", shown)
    add(table, "files", [f"{name}  {size(n_bytes)}" for name, n_bytes in d.shards.items()])
    _add_side_files(table, d)
    obstacles = [f"others can't: {why}" for why in d.choice.obstacles]
    add(table, "readers", [_OWN_READERS[d.code], *obstacles] if obstacles else _EVERY_READER)
    if d.peak_memory_bytes:
        add(table, "peak memory", f"about {size(d.peak_memory_bytes)}")
    return table


def _add_side_files(table: Table, d: Description) -> None:
    """What lies beside the weights."""
    if d.side_files:
        n_bytes = sum(d.side_files.values())
        add(table, "side files", f"{counted(len(d.side_files), 'file')} copied, {size(n_bytes)}")
    if d.left_out:
        add(table, "not copied", list(_left_out(d.left_out)))


def _add_coding(table: Table, d: Description) -> None:
    """How codes were made."""
    if "F16" in d.norm_dtypes:
        tensors = (f"{dtype} of {counted(n, 'tensor')}" for dtype, n in d.norm_dtypes.items())
        add(table, "norms", ", ".join(tensors))
    if d.code == "trellis":
        add(table, "codes", "of 3 and 4 bits: a path through a trellis")
    if d.scale:
        add(table, "scales", _SCALES[d.scale])
    if d.calibration:
        add(table, "calibrated", calibrated_by(d.calibration))
    if d.equalized:
        add(table, "columns", "equalized: the source's function, with other weights")


def calibrated_by(record: Mapping[str, Any]) -> str:
    """With which tokens codes were calibrated, from `calibration` of tq_config.json."""
    tokens, text = record.get("tokens"), record.get("text")
    what = "random tokens" if text == "random" else f"tokens of {text}"
    return f"with {tokens} {what}: errors of one weight are made up for by others"


def _classes(d: Description) -> Table:
    table = columns("class", "compressed", "kept", "weights", "size", "bits a weight")
    for line in d.classes:
        add(
            table,
            line.label,
            str(line.n_compressed),
            str(line.n_kept),
            count(line.n_weights),
            size(line.n_bytes),
            f"{line.bits_per_weight:.2f}",
        )
    return table


def _roles(d: Description) -> Table:
    table = columns(
        "role", "width", "tensors", "weights", "size", "share of loss", "next bit saves"
    )
    for line in d.choice.roles:
        add(
            table,
            line.role,
            str(line.bits or "exact"),
            str(line.n_tensors),
            count(line.n_weights),
            size(line.n_bytes),
            f"{line.loss_share:.1%}" if line.bits else "-",
            "-" if line.saved is None else f"{line.saved:.1f} % for 1 %",
        )
    return table


def _kept(d: Description) -> Table:
    table = columns("kept because", "tensors", "size")
    for reason, (number, n_bytes) in d.kept_reasons.items():
        add(table, reason, str(number), size(n_bytes))
    return table


def _tensors(d: Description) -> Table:
    table = columns("tensor", "shape", "stored", "size", "loses", "why")
    for line in d.tensors:
        add(
            table,
            line.name,
            "x".join(map(str, line.shape)),
            f"{line.bits} bits" if line.bits else line.dtype,
            size(line.n_bytes),
            line.loses or "-",
            line.reason,
        )
    return table
