"""Time one token of a model of Qwen3.6-27B's shapes on a processor, by kind of module.

The source is of zeros, files with holes, so that neither a download nor 56 GB of disk is needed;
the time depends on no value. It is compressed, and loaded by tq3.load in a process of its own.
`--layers 64` is the whole model, 15.4 GB. `--cold` has the folder read from the disk anew.

    python scripts/bench_27b.py --layers 8
    ONEDNN_MAX_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 python scripts/bench_27b.py  # no bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import tq3
from tq3.runtime import native
from tq3.runtime.modules import PackedLinear

LISTING = Path(__file__).parents[1] / "tests" / "plan" / "data" / "qwen3.6-27b.json"
FULL_ATTENTION_EVERY = 4
OTHER = "all else: residuals, activations, embedding, Python"


def write_source(folder: Path, layers: int) -> int:
    """A checkpoint of zeros, of so many of the model's layers. Returns the bytes of its tensors."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in tensors(layers):
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    return offset


def tensors(layers: int) -> Iterator[tuple[str, list[int]]]:
    listing = json.loads(LISTING.read_text())
    for name, shape, *sets in listing["tensors"]:
        numbers = listing["layers"][sets[0]] if sets else [None]
        for number in numbers:
            if number is None or sets[0] in ("mtp", "vision") or number < layers:
                yield name.format(number), shape


def config(layers: int) -> dict[str, Any]:
    """What Transformers must know of the shapes beyond its defaults."""
    text = {
        "model_type": "qwen3_5_text",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": layers,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "linear_num_value_heads": 48,
        "full_attention_interval": FULL_ATTENTION_EVERY,
        "vocab_size": 248320,
        "dtype": "bfloat16",
    }
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": {"model_type": "qwen3_5_vision", "out_hidden_size": 5120},
    }


class Spent(NamedTuple):
    """Seconds."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Any) -> Spent:
        return Spent(self.wall + other.wall, self.processor + other.processor)


class Clock:
    """Time by kind: each moment belongs to the innermost kind that is being computed."""

    def __init__(self) -> None:
        self._kinds = [OTHER]
        self.restart()

    def restart(self) -> None:
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self._last = (time.perf_counter(), time.process_time())

    def charge(self) -> None:
        """What has passed goes to the kind that is being computed."""
        now = (time.perf_counter(), time.process_time())
        passed = Spent(now[0] - self._last[0], now[1] - self._last[1])
        self.spent[self._kinds[-1]] += passed
        self._last = now

    @contextmanager
    def inside(self, kind: str) -> Iterator[None]:
        self.enter(kind)
        yield
        self.leave()

    def enter(self, kind: str) -> None:
        self.charge()
        self._kinds.append(kind)

    def leave(self) -> None:
        self.charge()
        self._kinds.pop()

    def watch(self, model: Any) -> None:
        """Have the model's modules, and its causal convolutions, charged by their kind."""
        head = model.get_output_embeddings()
        for module in model.modules():
            kind = "head" if module is head else kind_of(module)
            if kind:
                module.register_forward_pre_hook(lambda *_, kind=kind: self.enter(kind))
                module.register_forward_hook(lambda *_: self.leave())
        F.conv1d = self._watched("conv1d", F.conv1d)

    def _watched(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.inside(kind):
                return function(*arguments, **options)

        return watched


def kind_of(module: nn.Module) -> str | None:
    name = type(module).__name__
    if isinstance(module, PackedLinear):
        return "packed layers"
    for tail, kind in (
        ("RMSNorm", "norms"),
        ("RMSNormGated", "norms"),
        ("GatedDeltaNet", "Gated DeltaNet, the rest"),
        ("Attention", "attention, the rest"),
    ):
        if name.endswith(tail):
            return kind
    return None


KINDS = (
    "packed layers",
    "head",
    "conv1d",
    "Gated DeltaNet, the rest",
    "attention, the rest",
    "norms",
    OTHER,
)


def serve(folder: Path, n_tokens: int) -> None:
    """Load, generate, print the table. In a process of its own, for its memory's sake."""
    start = time.perf_counter()
    model = tq3.load(folder)
    print(f"loaded in {time.perf_counter() - start:.1f} s; {memory()}")
    clock = Clock()
    clock.watch(model)
    steps, faults, past = [], [], None
    with torch.inference_mode():
        for _ in range(n_tokens):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            clock.restart()
            # A prompt of one token, so that all columns are of one token.
            out = model(input_ids=torch.tensor([[1]]), past_key_values=past, use_cache=True)
            clock.charge()
            past = out.past_key_values
            steps.append(clock.spent)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)
    print(f"after {n_tokens} tokens: {memory()}\n")
    print_table(steps, faults)


def print_table(steps: list[dict[str, Spent]], faults: list[int]) -> None:
    print("| ms of processor time, in brackets of wall time | 1st token | 2nd | later, median |")
    print("| --- | --- | --- | --- |")
    for kind in KINDS:
        row(kind, [step[kind] for step in steps])
    totals = [sum((step[kind] for kind in KINDS), Spent()) for step in steps]
    row("**one token**", totals)
    ours = [step["packed layers"] + step["head"] for step in steps]
    ratios = [
        f"{total.processor / one.processor:.2f}" for total, one in zip(totals, ours, strict=True)
    ]
    later = statistics.median(
        total.processor / one.processor for total, one in zip(totals[2:], ours[2:], strict=True)
    )
    print(f"| it by packed layers and head | {ratios[0]} | {ratios[1]} | {later:.2f} |")
    print(f"| pages waited for | {faults[0]} | {faults[1]} | {statistics.median(faults[2:]):.0f} |")


def row(name: str, spent: list[Spent]) -> None:
    later = Spent(*(statistics.median(values) for values in zip(*spent[2:], strict=True)))
    cells = (f"{s.processor * 1e3:.0f} ({s.wall * 1e3:.0f})" for s in (*spent[:2], later))
    print(f"| {name} | {' | '.join(cells)} |")


def memory() -> str:
    status = Path("/proc/self/status").read_text()
    kinds = {"RssAnon": "anonymous", "RssFile": "of files", "VmHWM": "at most"}
    found = {kind: int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) for kind in kinds}  # type: ignore[index]
    return ", ".join(f"{found[kind] * 1024 / 1e9:.2f} GB {word}" for kind, word in kinds.items())


def forget(folder: Path) -> None:
    """Have the system drop what it holds of these files."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=8, help="multiples of four; 64 are all")
    parser.add_argument("--tokens", type=int, default=12, help="at least 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-dtype", default="source", help="of what stays uncompressed")
    parser.add_argument("--cold", action="store_true", help="read the folder from the disk anew")
    parser.add_argument("--folder", type=Path, help="keep the compressed model here, or use it")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        torch.set_num_threads(options.threads)
        serve(options.serve, options.tokens)
        return
    with tempfile.TemporaryDirectory(prefix="bench-27b-") as scratch:
        folder = options.folder or Path(scratch) / "tq3"
        if not folder.exists():
            source = Path(scratch) / "source"
            size = write_source(source, options.layers)
            start = time.perf_counter()
            report = tq3.compress(source, folder, keep_dtype=options.keep_dtype)
            took = time.perf_counter() - start
            print(f"{size:,} bytes compressed to {report.output_bytes:,} in {took:.0f} s")
        if options.cold:
            forget(folder)
        threads, kernels = options.threads, native.get_kernels().name
        capability = torch.backends.cpu.get_cpu_capability()
        print(f"{threads} threads, kernels {kernels}, torch {torch.__version__} {capability}")
        sys.stdout.flush()
        counts = ("--tokens", str(options.tokens), "--threads", str(options.threads))
        subprocess.run((sys.executable, __file__, "--serve", folder, *counts), check=True)


if __name__ == "__main__":
    main()
