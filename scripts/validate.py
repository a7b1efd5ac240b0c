"""Compress a model, verify it, serve it packed, and measure what it lost and how fast it is.

    python scripts/validate.py MODEL [--text FILE] [--tokens N] [--no-compile] [--json FILE]

MODEL is an ordinary checkpoint folder. Perplexity and KL divergence are those of `tq3 eval`. Speed
and memory are measured in a process for each model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure_generation import PROMPT
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

import tq3
from tq3.evaluation.evaluate import evaluate
from tq3.evaluation.measures import Measures
from tq3.events import follow
from tq3.format.quality import quality_rows

MEASURE = Path(__file__).parent / "measure_generation.py"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compress a model and measure the result.")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--text", type=Path, help="plain text to judge by; a short one is built in")
    parser.add_argument("--tokens", type=int, default=1024, help="of the text, at most")
    parser.add_argument("--window", type=int, default=256, help="tokens that are read together")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--dtype", default="bfloat16", help="of activations and unpacked weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--work", type=Path, help="keep what is made in this folder")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        figures = validate(options, options.work or Path(scratch))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["faults"]:
        sys.exit(1)


def validate(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures, in the order of the table."""
    packed = work / "tq3"
    say(f"compressing {options.model} to {options.bits} bits")
    report = tq3.compress(options.model, packed, bits=options.bits, overwrite=True)
    say("verifying")
    verification = tq3.verify(packed, source=options.model)
    figures = {
        "model": str(options.model),
        "bits": options.bits,
        "device": options.device,
        "dtype": options.dtype,
        "source_bytes": report.source_bytes,
        "packed_bytes": report.output_bytes,
        "compress_seconds": report.seconds,
        "mean_error": report.mean_error,
        "faults": [str(fault) for fault in verification.faults],
    }
    say("reading the text with both models")
    figures["measures"] = asdict(quality(options, packed))
    for name, folder, extra in speeds(options, packed):
        say(f"generating: {name}")
        figures[name] = generation(options, folder, extra)
    return figures


def say(step: str) -> None:
    print(step, "...", file=sys.stderr, flush=True)


def speeds(
    options: argparse.Namespace, packed: Path
) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """What to measure: name, folder, options."""
    yield "source", options.model, ()
    yield "packed", packed, ()
    if not options.no_compile:
        yield "source_compiled", options.model, ("--compile",)
        yield "packed_compiled", packed, ("--compile",)


def generation(options: argparse.Namespace, folder: Path, extra: tuple[str, ...]) -> Any:
    """Figures of a process of its own."""
    command: tuple[Any, ...] = (sys.executable, MEASURE, folder, "--prompt", PROMPT)
    command += ("--dtype", options.dtype, "--device", options.device)
    command += ("--tokens", str(options.new_tokens), *extra)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def quality(options: argparse.Namespace, packed: Path) -> Measures:
    """What `tq3 eval` says of the text."""
    run = evaluate(
        packed, options.model, text=options.text, tokens=options.tokens, context=options.window
    )
    return follow(run).measures


def show(figures: dict[str, Any]) -> None:
    """One table: the source on the left, the packed model on the right."""
    table = Table(title=f"{figures['model']}, {figures['bits']} bits, {figures['dtype']}")
    table.add_column("")
    table.add_column("source", justify="right")
    table.add_column("packed", justify="right")
    for row in rows(figures):
        table.add_row(*row)
    Console().print(table)
    print(f"{PROMPT} ...")
    for kind in ("source", "packed"):
        print(f"  {kind:8}{figures[kind]['text']!r}")
    for fault in figures["faults"]:
        print("fault:", fault)


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""

    def pair(name: str, key: str, scale: float, text: str, suffix: str = "") -> tuple[str, ...]:
        found = (figures[f"{kind}{suffix}"][key] / scale for kind in ("source", "packed"))
        return (name, *(text.format(number) for number in found))

    sizes = (figures["source_bytes"], figures["packed_bytes"])
    yield "tensors, MB", *(f"{size / 1e6:,.1f}" for size in sizes)
    yield "compressed in, s", "", f"{figures['compress_seconds']:.2f}"
    yield "verified", "", f"{len(figures['faults'])} faults"
    yield from quality_rows(figures["measures"])
    yield pair("weights in memory, MB", "weight_bytes", 1e6, "{:,.1f}")
    yield pair("resident, MB", "resident_bytes", 1e6, "{:,.1f}")
    yield pair("loaded in, s", "load_seconds", 1, "{:.2f}")
    yield pair("tokens/s, eager", "tokens_per_second", 1, "{:.1f}")
    if "packed_compiled" in figures:
        yield pair("tokens/s, torch.compile", "tokens_per_second", 1, "{:.1f}", "_compiled")
        yield pair("compiled in, s", "compile_seconds", 1, "{:.0f}", "_compiled")


if __name__ == "__main__":
    main()
