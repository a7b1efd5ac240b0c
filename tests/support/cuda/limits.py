"""What the machine code of the kernels holds, and issues for a weight: no clock was read.

    PYTHONPATH=tests python -m support.cuda.limits

prints the table of docs/kernels.md, section 7.1.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from support.cuda import sass
from support.cuda.instances import ARCHITECTURES, SHARED_COLUMNS
from tq3.runtime.cuda import source
from tq3.runtime.cuda.calls import MOST_COLUMNS
from tq3.runtime.cuda.compiler import OPTIONS

COLUMNS = (1, *SHARED_COLUMNS)
# Rows and inputs of a product of tensor cores.
_ROWS, _INPUTS, _LANES = 16, 32, 32


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop's instructions a weight, over all and by pipe."""

    total: float
    pipes: dict[str, float]


def codes_of(kernel: str, instances: list[str], architecture: str) -> dict[str, sass.Code]:
    """Of many instances, compiled together, in a fraction of the time, without a warning."""
    cubin, names = compiled(kernel, instances, architecture)
    with tempfile.TemporaryDirectory() as folder:
        found = sass.read(sass.disassembled(cubin, Path(folder)))
    return {each: found[of] for each, of in zip(instances, names, strict=True)}


def compiled(kernel: str, instances: list[str], architecture: str) -> tuple[bytes, list[str]]:
    """Machine code of many instances, and their names in it; a warning is an error."""
    program = _answer(nvrtc.nvrtcCreateProgram(source.kernel(kernel).encode(), b"", 0, [], []))
    for instance in instances:
        _answer(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
    options = [each.encode() for each in (*OPTIONS, f"--gpu-architecture={architecture}")]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    # An empty log has one byte, and a bytes object of one byte is Python's own.
    log = bytes(_answer(nvrtc.nvrtcGetProgramLogSize(program)) + 1)
    _answer(nvrtc.nvrtcGetProgramLog(program, log))
    assert (status, log.decode().strip("\0 \n")) == (nvrtc.nvrtcResult.NVRTC_SUCCESS, "")
    cubin = b" " * _answer(nvrtc.nvrtcGetCUBINSize(program))
    _answer(nvrtc.nvrtcGetCUBIN(program, cubin))
    names = [_answer(nvrtc.nvrtcGetLoweredName(program, each.encode())) for each in instances]
    return cubin, [of.decode() for of in names]


def _answer(result: tuple[Any, ...]) -> Any:
    error, *values = result
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    return values[0] if values else None


def multiplications(bits: int, group: int) -> list[str]:
    """An instance for each number of columns. Other dtypes differ after the loop only."""
    return [
        f"multiply<Dtype::kBF16, {bits}, {group}>",
        *(
            f"multiply_shared<{bits}, {group}, {columns}>"
            for columns in SHARED_COLUMNS
            if columns <= MOST_COLUMNS[group]
        ),
    ]


def kernel_of(instance: str) -> str:
    """The file that has it."""
    return "share" if "shared" in instance else "multiply"


def loop_of(code: sass.Code, columns: int) -> Loop:
    """Each product of the tensor cores of one column multiplies other weights."""
    opcodes = code.hot_loop()
    counts = Counter(sass.pipes(opcodes))
    weights = counts["tensor"] * _ROWS * _INPUTS / columns / _LANES
    return Loop(len(opcodes) / weights, {pipe: n / weights for pipe, n in counts.items()})


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


if __name__ == "__main__":
    wanted = [each for bits in (2, 3, 4) for each in multiplications(bits, 128)]
    _print_instructions(
        {
            architecture: {
                instance: code
                for kernel in ("multiply", "share")
                for instance, code in codes_of(
                    kernel, [each for each in wanted if kernel_of(each) == kernel], architecture
                ).items()
            }
            for architecture in ARCHITECTURES
        }
    )
