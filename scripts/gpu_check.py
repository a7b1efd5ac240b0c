"""Check tq3's CUDA kernels on the GPU of this machine, and time them: one table to paste.

Results against the reference, layers and experts of real shapes beside torch's bfloat16 linear,
decoding with and without CUDA graphs, memory as layers are loaded, compilation. A fault ends
neither the part nor the rest, and makes the exit code 1; without a GPU that runs the kernels it
is 2.

    python scripts/gpu_check.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from gpu import cases, compilation, decoding, exactness, machine, throughput
from gpu.machine import Gpu
from gpu.section import Section, text

Part = Callable[[], Iterable[Section]]
NO_GPU = 2


def parts(gpu: Gpu, is_quick: bool) -> dict[str, Part]:
    """What is measured, by name."""
    results: dict[str, Part] = {
        "results": lambda: [
            exactness.section(exactness.check(cases.all_cases(), gpu.on, gpu.device))
        ]
    }
    plan = throughput.Plan()
    others: dict[str, Part] = {
        "layers": lambda: [throughput.layers(gpu, plan)],
        "experts": lambda: [throughput.experts(gpu, plan)],
        "decoding": lambda: decoding.measure(gpu, decoding.Sizes()),
        "compilation": lambda: [compilation.measure(gpu.compile)],
    }
    return results if is_quick else results | others


def sections(parts: dict[str, Part]) -> Iterator[Section]:
    """Of each part, and of one that fails its fault."""
    for name, part in parts.items():
        try:
            yield from part()
        except Exception as error:  # whatever it is, the other parts are worth having
            yield Section(name, [], [], [f"{type(error).__name__}: {error}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Check and time the CUDA kernels on a GPU.")
    parser.add_argument("--quick", action="store_true", help="results only, no times")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all of it as JSON, too")
    options = parser.parse_args()
    gpu = machine.find()
    if gpu is None:
        parser.exit(NO_GPU, f"gpu_check: {_why_none()}\n")
    start, header, found = time.perf_counter(), machine.versions(), []
    print("\n".join(header), flush=True)
    for section in sections(parts(gpu, options.quick)):
        found.append(section)
        print(text(section), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")
    if options.out:
        report = {"versions": header, "sections": [section._asdict() for section in found]}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if any(section.faults for section in found) else 0)


def _why_none() -> str:
    if torch.cuda.is_available():
        return "tq3's kernels do not run on this GPU; the warning above says why"
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return (
        f"torch finds no GPU (torch {torch.__version__}, built {built}); run this where nvidia-smi "
        "lists one, with a CUDA build of torch"
    )


if __name__ == "__main__":
    main()
