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
from cuda.bindings import nvrtc
from instances import ARCHITECTURES

from tq3.runtime.cuda import source
from tq3.runtime.cuda.calls import MOST_COLUMNS
from tq3.runtime.cuda.compiler import OPTIONS

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


def codes_of(
    kernel: str, instances: list[str], architecture: str, folder: Path
) -> dict[str, sass.Code]:
    """Of many instances, compiled together: a fraction of the time. folder: for a file"""
    program = _answer(nvrtc.nvrtcCreateProgram(source.kernel(kernel).encode(), b"", 0, [], []))
    for instance in instances:
        _answer(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
    options = [each.encode() for each in (*OPTIONS, f"--gpu-architecture={architecture}")]
    _answer(nvrtc.nvrtcCompileProgram(program, len(options), options))
    cubin = b" " * _answer(nvrtc.nvrtcGetCUBINSize(program))
    _answer(nvrtc.nvrtcGetCUBIN(program, cubin))
    names = [_answer(nvrtc.nvrtcGetLoweredName(program, each.encode())) for each in instances]
    found = sass.read(sass.disassembled(cubin, folder))
    return {each: found[of.decode()] for each, of in zip(instances, names, strict=True)}


def _answer(result):
    error, *values = result
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    return values[0] if values else None


def multiplications(bits: int, group: int) -> list[str]:
    """An instance for each number of columns. Other dtypes differ after the loop only."""
    of_group = [columns for columns in COLUMNS if columns <= MOST_COLUMNS[group]]
    return [f"multiply<Dtype::kBF16, {bits}, {group}, {columns}>" for columns in of_group]


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


def _print_instructions(codes: dict[str, dict[str, sass.Code]]) -> None:
    order = ("alu", "fma", "convert", "tensor", "memory", "other")
    for bits in (3, 4, 2):
        print(f"\n{bits} bits: all ({', '.join(order)}), registers")
        for instance, columns in zip(multiplications(bits, 128), COLUMNS, strict=True):
            cells = []
            for architecture in ARCHITECTURES:
                code = codes[architecture][instance]
                loop = loop_of(code, columns)
                pipes = " ".join(f"{loop.pipes.get(pipe, 0):.2f}" for pipe in order)
                cells.append(f"{architecture} {loop.total:.2f} ({pipes}), {code.registers}")
            print(f"{4 * columns} tokens | " + " | ".join(cells))


def _print_shares(codes: dict[str, dict[str, sass.Code]]) -> None:
    for instance, columns in zip(multiplications(3, 128), COLUMNS, strict=True):
        print(f"\nup to {4 * columns} tokens, 3 bits")
        for gpu in GPUS:
            found = shares(gpu, loop_of(codes[gpu.architecture][instance], columns), 3, 128)
            cells = [f"{pipe} {100 * share:.0f} %" for pipe, share in found.items()]
            weights = gpu.rate / (3 / 8 + 4 / 128)
            print(f"{gpu.name} | {weights:.0f} G weights/s | " + " | ".join(cells))


if __name__ == "__main__":
    wanted = [each for bits in (2, 3, 4) for each in multiplications(bits, 128)]
    with tempfile.TemporaryDirectory() as kept:
        all_codes = {each: codes_of("multiply", wanted, each, Path(kept)) for each in ARCHITECTURES}
    _print_instructions(all_codes)
    _print_shares(all_codes)
