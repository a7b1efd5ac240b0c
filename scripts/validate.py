"""Compress a model, verify it, serve it packed, and measure what it lost and how fast it is.

    python scripts/validate.py MODEL [--text FILE] [--tokens N] [--no-compile] [--json FILE]

MODEL is an ordinary checkpoint folder. Perplexity and the KL divergence of the packed model's next
token from the source's are taken over windows of text; the two models are never in memory together:
the source's log-probabilities wait in a file. Speed is measured in a process for each model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_generation import PROMPT, load
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import tq3
from tq3.publication.quality import quality_record, quality_rows

MEASURE = Path(__file__).parent / "measure_generation.py"
TEXT = """
A lighthouse is a tower with a strong lamp at its top. It tells the crews of ships where they
are at night, and where rocks, shoals and the mouths of harbours lie. The first ones were fires
of wood on a hill; later, people built towers of stone so that the light could be seen from
farther away. Oil lamps came after the fires, and curved mirrors behind them threw the light out
to sea. In the nineteenth century a French engineer, Augustin Fresnel, found that a large lens
can be cut into rings. Each ring bends the light as a full lens would, but the whole is thin
enough to be carried up the stairs. With such lenses a lamp could be seen for thirty kilometres.
Keepers lived in the towers with their families. They trimmed the wicks, cleaned the glass every
morning and wound up the clockwork that turned the lens. Because each lighthouse flashed in its
own rhythm, a captain could look it up in a book and know which coast was before him. Today
nearly all of them work alone. Electric lamps are switched on by a sensor, and satellites tell
ships their place to within a few metres. Many towers have become museums or hotels, and yet
sailors still look out for them: a light that can be seen does not depend on a battery, a screen
or a signal from space.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compress a model and measure the result.")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--text", type=Path, help="plain text to judge by; a paragraph is built in")
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
    figures |= quality(options, packed, work)
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
    command += ("--dtype", options.dtype)
    command += ("--device", options.device, "--tokens", str(options.new_tokens), *extra)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def quality(options: argparse.Namespace, packed: Path, work: Path) -> dict[str, Any]:
    """Perplexities, KL divergence and how often both models prefer the same token."""
    windows = list(text_windows(options))
    store = work / "source_log_probabilities.npy"
    source = read_text(load(options.model, options.dtype, options.device), windows, store)
    found = compare(load(packed, options.dtype, options.device), windows, store)
    store.unlink()
    return quality_record(
        tokens=len(source),
        source=float((-source.mean()).exp()),
        packed=float((-found["likelihood"].mean()).exp()),
        divergence=float(found["divergence"].mean()),
        agreement=float(found["agreement"].mean()),
    )


def read_text(model: PreTrainedModel, windows: list[torch.Tensor], store: Path) -> torch.Tensor:
    """Log-probabilities of the text's tokens, (tokens,); those of all tokens go to `store`."""
    shape = (sum(len(window) - 1 for window in windows), model.get_output_embeddings().out_features)
    kept = np.lib.format.open_memmap(store, "w+", np.float32, shape)
    likelihoods, position = [], 0
    for window in windows:
        scores = log_probabilities(model, window)
        kept[position : position + len(scores)] = scores.numpy()
        likelihoods.append(of_text(scores, window))
        position += len(scores)
    return torch.cat(likelihoods)


def compare(
    model: PreTrainedModel, windows: list[torch.Tensor], store: Path
) -> dict[str, torch.Tensor]:
    """One number a token: its log-probability, and how far `store` and this model are apart."""
    kept, position = np.load(store, mmap_mode="r"), 0
    found: dict[str, list[torch.Tensor]] = {"likelihood": [], "divergence": [], "agreement": []}
    for window in windows:
        scores = log_probabilities(model, window)
        source = torch.from_numpy(kept[position : position + len(scores)].copy())
        found["likelihood"].append(of_text(scores, window))
        found["divergence"].append((source.exp() * (source - scores)).sum(-1))
        found["agreement"].append((source.argmax(-1) == scores.argmax(-1)).float())
        position += len(scores)
    return {name: torch.cat(parts) for name, parts in found.items()}


def text_windows(options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Token numbers, a window at a time; a rest of a single token predicts nothing."""
    text = options.text.read_text() if options.text else TEXT.strip().replace("\n", " ")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0, : options.tokens]
    yield from (window for window in tokens.split(options.window) if len(window) > 1)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, window: torch.Tensor) -> torch.Tensor:
    """Of every token after each but the last of the window.  (tokens - 1, vocabulary) float32"""
    logits = model(window[None].to(model.device), use_cache=False).logits[0, :-1]
    scores: torch.Tensor = logits.float().log_softmax(-1).cpu()
    return scores


def of_text(scores: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """The log-probability of each token that the text really has."""
    return scores.gather(-1, window[1:, None])[:, 0]


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
    yield from quality_rows(figures)
    yield pair("weights in memory, MB", "weight_bytes", 1e6, "{:,.1f}")
    yield pair("resident, MB", "resident_bytes", 1e6, "{:,.1f}")
    yield pair("loaded in, s", "load_seconds", 1, "{:.2f}")
    yield pair("tokens/s, eager", "tokens_per_second", 1, "{:.1f}")
    if "packed_compiled" in figures:
        yield pair("tokens/s, torch.compile", "tokens_per_second", 1, "{:.1f}", "_compiled")
        yield pair("compiled in, s", "compile_seconds", 1, "{:.0f}", "_compiled")


if __name__ == "__main__":
    main()
