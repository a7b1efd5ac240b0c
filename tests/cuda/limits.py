"""What machine code and data sheets say about the speed of the multiplication: no clock was read.

    PYTHONPATH=tests/runtime python tests/cuda/limits.py

prints the tables of docs/kernels.md, section 7.1.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import sass

from tq3.runtime.cuda import compiler

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
COLUMNS = (1, 2, 4, 8)
# Rows and inputs of a product of tensor cores.
_ROWS, _INPUTS, _LANES = 16, 32, 32
# Results of a multiprocessor in a clock: what may be issued, and the least that a pipe does on any
# of the devices below. A product of tensor cores is counted by its multiplications.
_LANES_A_CLOCK = {"issue": 128, "alu": 64, "fma": 64, "convert": 16}
_MULTIPLICATIONS = 16 * 8 * 32


@dataclass(frozen=True, slots=True)
class Gpu:
    """From data sheets. rate: GB/s of memory; clock: GHz, boosted; int8: dense tera-operations."""

    name: str
    architecture: str
    rate: float
    multiprocessors: int
    clock: float
    int8: float


GPUS = (
    Gpu("A100 80 GB SXM", "sm_80", 2039, 108, 1.41, 624),
    Gpu("H100 SXM", "sm_90", 3350, 132, 1.83, 1979),
    Gpu("H200 SXM", "sm_90", 4800, 132, 1.83, 1979),
    Gpu("RTX PRO 6000", "sm_120", 1792, 188, 2.617, 1007),
    Gpu("RTX 4090", "sm_89", 1008, 128, 2.52, 661),
)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop's instructions a weight, over all and by pipe."""

    total: float
    pipes: dict[str, float]


def code_of(instance: str, architecture: str, folder: Path) -> sass.Code:
    """Of a kernel such as "multiply<Dtype::kBF16, 3, 128, 1>", compiled, and kept in `folder`."""
    kernel = instance.split("<", maxsplit=1)[0]
    cubin = compiler.compiled(kernel, instance, architecture, folder).cubin
    return sass.read(sass.disassembled(cubin, folder))


def loop_of(code: sass.Code, columns: int) -> Loop:
    """Each product of the tensor cores of one column multiplies other weights."""
    opcodes = code.hot_loop()
    counts = Counter(sass.pipes(opcodes))
    weights = counts["tensor"] * _ROWS * _INPUTS / columns / _LANES
    return Loop(len(opcodes) / weights, {pipe: n / weights for pipe, n in counts.items()})


def shares(gpu: Gpu, loop: Loop, bits: int, group: int) -> dict[str, float]:
    """How busy each pipe is while memory gives all it can: beyond 1 it is the limit, not memory."""
    weights = gpu.rate / (bits / 8 + 4 / group) / gpu.multiprocessors / gpu.clock
    pipes = loop.pipes | {"issue": loop.total}
    found = {pipe: weights * pipes.get(pipe, 0) / lanes for pipe, lanes in _LANES_A_CLOCK.items()}
    a_clock = gpu.int8 * 1000 / 2 / gpu.multiprocessors / gpu.clock
    found["tensor"] = weights / _LANES * loop.pipes["tensor"] * _MULTIPLICATIONS / a_clock
    return found


def _instructions(folder: Path) -> None:
    for bits in (3, 2):
        print(f"\n{bits} bits | " + " | ".join(ARCHITECTURES))
        for columns in COLUMNS:
            cells = []
            for architecture in ARCHITECTURES:
                instance = f"multiply<Dtype::kBF16, {bits}, 128, {columns}>"
                code = code_of(instance, architecture, folder)
                loop = loop_of(code, columns)
                order = ("alu", "fma", "convert", "tensor", "memory", "other")
                pipes = " ".join(f"{loop.pipes.get(pipe, 0):.2f}" for pipe in order)
                cells.append(f"{loop.total:.2f} ({pipes}), {code.registers}")
            print(f"{4 * columns} tokens | " + " | ".join(cells))


def _rooflines(folder: Path) -> None:
    for columns in COLUMNS:
        print(f"\nup to {4 * columns} tokens, 3 bits")
        for gpu in GPUS:
            instance = f"multiply<Dtype::kBF16, 3, 128, {columns}>"
            loop = loop_of(code_of(instance, gpu.architecture, folder), columns)
            found = shares(gpu, loop, 3, 128)
            busiest = max(found.values())
            cells = [f"{pipe} {100 * share:.0f} %" for pipe, share in found.items()]
            at_most = gpu.rate / (3 / 8 + 4 / 128) / max(1, busiest)
            print(f"{gpu.name} | " + " | ".join(cells) + f" | {at_most:.0f} G")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as kept:
        _instructions(Path(kept))
        _rooflines(Path(kept))
