"""Programs of a process whose libcuda.so.1 is the stand-in (driver.cpp), by the package's Device.

torch has no GPU there: what device.py asks it for is made up, and tensors lie in the processor's
memory. `run` runs one from a test, and gives what it asked for beside what the driver was given.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

HERE = Path(__file__).parents[2] / "cuda"
STREAM = 0x77


class Run(NamedTuple):
    """What a program printed, the launches it asked for, and those that the driver was given: lines
    of a grid and a stream, each with lines for its arguments.
    """

    printed: list[str]
    asked: list[list[str]]
    given: list[list[str]]
    others: list[str]


@cache
def stand_in(folder: Path) -> Path:
    """The folder, with the stand-in in it."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    options = ("-shared", "-fPIC", "-O1", "-std=c++20", "-Wl,-soname,libcuda.so.1")
    source, library = HERE / "driver.cpp", folder / "libcuda.so.1"
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    return folder


def run(program: str, folder: Path, **environment: str) -> Run:
    """A program that begins with `device = through_driver.device()`. folder: for its files"""
    log = folder / "driver.log"
    environment |= {
        "LD_LIBRARY_PATH": str(stand_in(folder)),
        "DRIVER_LOG": str(log),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    child = subprocess.run(
        [sys.executable, "-c", f"from support.cuda import through_driver\n{program}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    *printed, asked = child.stdout.splitlines()
    others, given = [], []
    for line in log.read_text().splitlines():
        if line.startswith("launch "):
            given.append([line])
        elif given and line.startswith(("pointer ", "int ", "float ")):
            given[-1].append(line)
        else:
            others.append(line)
    return Run(printed, json.loads(asked), given, others)


def device(processors: int = 3, architecture: str = "sm_80") -> Any:
    """A Device that every tensor is on. Its calls are printed when the process ends.

    What device.py asks torch for is made up there only: hosts have stand-ins of their own.
    """
    from tq3.runtime.cuda import compiler, support  # noqa: PLC0415  only the other process needs
    from tq3.runtime.cuda import device as module  # noqa: PLC0415  NVIDIA's packages

    cuda = SimpleNamespace(
        device=lambda _: contextlib.nullcontext(),
        current_stream=lambda _: SimpleNamespace(cuda_stream=STREAM),
        get_device_properties=lambda _: SimpleNamespace(
            multi_processor_count=processors, shared_memory_per_multiprocessor=228 << 10
        ),
        is_current_stream_capturing=lambda: False,
    )
    vars(module)["torch"] = SimpleNamespace(cuda=cuda, Tensor=torch.Tensor)
    torch.cuda.is_current_stream_capturing = lambda: False

    class Noting(module.Device):
        asked: list[list[str]] = []

        def launch(self, call: Any) -> None:
            name = compiler.compiled(call.kernel, call.instance, self.architecture).function
            grid = " ".join(map(str, call.grid))
            early = " early" if call.early and architecture != "sm_80" else ""
            shared = f"shared {call.shared_bytes}"
            where = f"block {call.threads} 1 1 {shared} stream {STREAM:#x}{early}"
            arguments = map(_line, call.arguments)
            self.asked.append([f"launch {name} grid {grid} {where}", *arguments])
            super().launch(call)

    found = Noting(0, architecture)
    support.launcher = lambda device: found
    atexit.register(lambda: print(json.dumps(found.asked), flush=True))
    return found


def _line(argument: torch.Tensor | int | float | None) -> str:
    """As the driver says it."""
    if argument is None or isinstance(argument, torch.Tensor):
        address = 0 if argument is None else argument.data_ptr()
        return f"pointer {struct.pack('<Q', address).hex()}"
    code, kind = ("<f", "float") if isinstance(argument, float) else ("<i", "int")
    return f"{kind} {struct.pack(code, argument).hex()}"
