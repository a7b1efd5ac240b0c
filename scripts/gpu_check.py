"""Check tq3's CUDA kernels on the GPU of this machine, and time them, in a quarter of an hour.

    PYTHONPATH=. python scripts/gpu_check.py [--seconds 840] [--out FILE.jsonl] [--only smoke ...]

Runs from a clone with a CUDA build of torch; nothing is built. Results are compared with the
reference, then each kernel is timed by itself, in layers, experts and a whole model. Each section
is a process of its own, and each row is a line of FILE as soon as it is measured. The exit code is
1 where there was a fault, 2 without a GPU that runs the kernels.

    gpu_check.py --compile sm_90 FOLDER    make machine code where there is no GPU
    gpu_check.py --codes FOLDER            use it, whoever owns the folder here
    gpu_check.py --table FILE.jsonl        print what was measured as Markdown
    gpu_check.py --crossings [FILE.jsonl]  measure (or take from FILE) when to decode, and write it
                                           into the package's table
    gpu_check.py --rehearse                do all of it on this processor, small and emulated
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu import codes, machine, running
from gpu.layers import crossing_from
from gpu.plan import SMALL, Plan
from gpu.rows import Row, append, read
from gpu.sections import INNER, SECTIONS, measure
from gpu.table import markdown, shown

from tq3.runtime.cuda import crossings

FAULT = 1


def main() -> None:
    options = _parser().parse_args()
    if options.section:
        sys.exit(run_section(options))
    if options.compile:
        architecture, folder = options.compile
        for line in codes.compile_all(architecture, Path(folder)):
            print(line, flush=True)
    elif options.table:
        print(markdown(read(options.table)), end="")
    elif isinstance(options.crossings, Path):
        print(write_crossing(read(options.crossings)))
    else:
        sys.exit(run_all(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check and time the CUDA kernels on a GPU.")
    of_sections: dict[str, Any] = {"nargs": "+", "choices": SECTIONS, "metavar": "SECTION"}
    about = f"of {', '.join(SECTIONS)}"
    parser.add_argument("--only", default=list(SECTIONS), help=about, **of_sections)
    parser.add_argument("--skip", default=[], help=about, **of_sections)
    parser.add_argument("--seconds", type=float, default=840, help="in all (840)")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), metavar="FILE")
    parser.add_argument("--codes", type=Path, metavar="FOLDER", help="compiled codes to use")
    parser.add_argument("--rehearse", action="store_true", help="on this processor, emulated")
    parser.add_argument("--compile", nargs=2, metavar=("ARCHITECTURE", "FOLDER"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print its rows as Markdown")
    takes: dict[str, Any] = {"nargs": "?", "const": True, "metavar": "FILE", "type": Path}
    parser.add_argument("--crossings", help="measure, or take from FILE, and write", **takes)
    parser.add_argument("--section", choices=SECTIONS | INNER, help=argparse.SUPPRESS)
    return parser


def run_all(options: argparse.Namespace) -> int:
    """Sections, one after the other; the exit code."""
    # So that `finally` runs, and no section outlives this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.crossings:
        options.only = ["smoke", "crossings"]
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tq3-codes-") as folder:
        if options.codes:
            codes.adopt(options.codes, Path(folder))
            os.environ["XDG_CACHE_HOME"] = folder
        try:
            for row in _rows(options):
                append(options.out, row)
                print(_line(row), flush=True)
                found.append(row)
        except running.NoGpu:
            return running.NO_GPU
    if options.crossings:
        print(write_crossing(found))
    return FAULT if any("fault" in row for row in found) else 0


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    start = time.monotonic()
    for name, section in SECTIONS.items():
        if name not in options.only or name in options.skip:
            continue
        left = start + options.seconds - time.monotonic()
        if left < running.LEAST_SECONDS:
            yield {"section": name, "case": "all", "skipped": "out of time"}
            continue
        seconds = min(section.seconds, left - running.GRACE_SECONDS)
        for row in running.rows_of(
            _command(name, options, seconds), seconds + running.GRACE_SECONDS
        ):
            yield {"section": name} | row


def _command(name: str, given: argparse.Namespace, seconds: float) -> list[str]:
    options = ["--section", name, "--seconds", f"{seconds:.0f}"]
    rehearsed = ["--rehearse"] if given.rehearse else []
    return [sys.executable, "-X", "faulthandler", __file__, *options, *rehearsed]


def run_section(options: argparse.Namespace) -> int:
    """In a process of its own: rows are printed as JSON."""
    deadline = time.monotonic() + options.seconds
    gpu = machine.rehearsal() if options.rehearse else machine.find()
    if gpu is None:
        print(f"gpu_check: {machine.why_none()}")
        return running.NO_GPU
    name = options.section
    section = (SECTIONS | INNER)[name]
    command = [_command(section.inner, options, section.seconds)] if section.inner else []
    found: list[Row] = []

    def tell(row: Row) -> None:
        found.append(row)
        print(json.dumps(row), flush=True)

    measure(
        section.cases(gpu, SMALL if options.rehearse else Plan(), *command), gpu, deadline, tell
    )
    # For the tool around an inner section; others are judged by their rows.
    return FAULT if name in INNER and any("fault" in row for row in found) else 0


def write_crossing(rows: list[Row]) -> str:
    """Put what `crossings` measured into the package's table; a sentence about it."""
    facts = next((row for row in rows if row["case"] == "machine"), None)
    measured = [row for row in rows if row["section"] == "crossings" and "integers us" in row]
    if not measured or not facts:
        raise SystemExit("gpu_check: no rows of the sections smoke and crossings to take it from")
    crossing = crossing_from(measured, f"{facts['GPU']}, {facts['day']}")
    crossings.write(facts["architecture"], crossing)
    return f"{crossings.PATH}: {facts['architecture']} has {crossing}"


def _line(row: Row) -> str:
    cells = [
        f"{name} {shown(value)}" for name, value in row.items() if name not in ("section", "case")
    ]
    return f"{row['section']}: {row['case']}: {', '.join(cells)}"


if __name__ == "__main__":
    main()
