"""Time torch.ops.tq3.linear against torch's linear layer in bfloat16 and float32, in one run.

Each layer exists many times over, so that every call reads its weights from memory. Rounds take
turns, of a few calls each, as a model calls layer after layer; what is printed are medians, and how
many times faster than torch tq3 is. With one thread the time is that thread's own, which is worth
more on a machine with other work to do. `--gib 0` with a small shape measures out of the cache.

    python scripts/bench_runtime.py --shapes 17408x5120 --tokens 1,8,64 --threads 1
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import tq3.runtime.ops  # noqa: F401  registers torch.ops.tq3
from tq3.runtime import cpu, native

SHAPES = "17408x5120,5120x17408,5120x12288"
CALLS = 4
Task = Callable[[], object]


class Layer(NamedTuple):
    """Random codes and norms; the time does not depend on them."""

    packed: torch.Tensor
    norms: torch.Tensor


def make_layers(rows: int, columns: int, bits: int, group: int, n_bytes: int) -> list[Layer]:
    n = -(-columns // group)
    packed = torch.randint(0, 256, (rows * n, group * bits // 8), dtype=torch.uint8)
    one = Layer(packed, torch.rand(rows, n))
    return [Layer(one.packed.clone(), one.norms.clone()) for _ in copies(packed.numel(), n_bytes)]


def make_weights(rows: int, columns: int, dtype: torch.dtype, n_bytes: int) -> list[torch.Tensor]:
    weight = torch.randn(rows, columns, dtype=dtype)
    return [weight.clone() for _ in copies(weight.nbytes, n_bytes)]


def copies(size: int, n_bytes: int) -> range:
    return range(max(2, -(-n_bytes // size)))


def medians(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Seconds of each task. The first call of a turn finds the caches as another task left them."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            for _ in range(CALLS):
                start = clock()
                task()
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_shape(shape: str, options: argparse.Namespace) -> None:
    rows, columns = map(int, shape.split("x"))
    n_bytes = int(options.gib * 2**30)
    layers = make_layers(rows, columns, options.bits, options.group, n_bytes)
    halves = itertools.cycle(make_weights(rows, columns, torch.bfloat16, n_bytes))
    singles = itertools.cycle(make_weights(rows, columns, torch.float32, n_bytes))
    memory = torch.ones(max(n_bytes, 2**28) // 8, dtype=torch.int64)
    read = sum(part.nbytes for part in layers[0])
    turn = itertools.cycle(layers)
    product = partial(linear, options=options)
    for tokens in map(int, options.tokens.split(",")):
        x = torch.randn(tokens, columns)
        x16 = x.bfloat16()
        # Kernels know an input that they had last.
        inputs, inputs16 = itertools.cycle((x, -x)), itertools.cycle((x16, -x16))
        tasks: dict[str, Task] = {
            "bf16": in_turn(partial(F.linear, x16), halves),
            "f32": in_turn(partial(F.linear, x), singles),
            "tq3": in_turn(product, inputs16, turn),
            "tq3 f32": in_turn(product, inputs, turn),
            "memory": memory.sum,
        }
        report(shape, tokens, rows * columns, read, memory.nbytes, medians(tasks, options.rounds))


def in_turn(call: Callable[..., object], *turns: Iterator[object]) -> Task:
    """A call of the next of each."""
    return lambda: call(*map(next, turns))


def linear(x: torch.Tensor, layer: Layer, options: argparse.Namespace) -> torch.Tensor:
    result: torch.Tensor = torch.ops.tq3.linear(x, *layer, options.bits, options.group)
    return result


def report(
    shape: str, tokens: int, weights: int, read: int, memory: int, seconds: dict[str, float]
) -> None:
    """`read`: bytes of a packed layer. `memory`: bytes that torch.sum read."""
    ours, bandwidth = seconds["tq3"], memory / seconds["memory"]
    print(
        f"{shape:12} {tokens:3} tokens  {ours * 1e3:8.2f} ms  "
        f"{weights / ours / 1e9:6.2f} G weights/s  "
        f"{seconds['bf16'] / ours:5.2f} x bf16  {seconds['f32'] / seconds['tq3 f32']:5.2f} x f32  "
        f"{read / ours / 1e9:5.1f} GB/s, {read / ours / bandwidth:4.0%} of reading by torch.sum",
        flush=True,
    )


def machine() -> str:
    """Processor, cores, commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default=SHAPES, help="rows x columns, several with commas")
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gib", type=float, default=1.0, help="memory of each kind of weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fast = cpu.multiplied_as(torch.empty(0, dtype=torch.bfloat16))
    print(f"{machine()}, torch {torch.__version__}, {options.threads} threads, kernels", end=" ")
    print(f"{native.get_kernels().name}, many tokens of bfloat16 multiplied as {fast}")
    with torch.inference_mode():
        for shape in options.shapes.split(","):
            bench_shape(shape, options)


if __name__ == "__main__":
    main()
