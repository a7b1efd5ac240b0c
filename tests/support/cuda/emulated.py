"""CUDA kernels compiled for the processor by a host compiler, and a device that runs them there."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tq3.runtime.cuda import calls, layout, source
from tq3.runtime.cuda.calls import Call
from tq3.runtime.cuda.crossings import OTHERS, crossing_of

HERE = Path(__file__).parents[2] / "cuda"
# "early": random, and asynchronous copies come at once instead of when they are waited for.
ORDERS = {"forward": 0, "reverse": 1, "random": 2, "early": 3}
# The compiler must round as CUDA's intrinsics do.
# Jumps from one stack to another are what some systems' headers refuse by themselves.
FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-U_FORTIFY_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
GUARD_BYTES = 256
# Of shared memory in a multiprocessor of sm_90.
SHARED_BYTES = 228 << 10
POISON = 0xAB


def compiled(host: str, folder: Path, *defines: str) -> ctypes.CDLL:
    """The library of a host program of this folder."""
    library = folder / "emulated.so"
    _run_compiler("-shared", "-include", _emulation(), *defines, HERE / host, "-o", library)
    return ctypes.CDLL(str(library))


@cache
def _emulation() -> Path:
    """The name of the device's header, compiled beforehand: a third of the time of a kernel."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    header = folder / "device.h"
    header.write_text('#include "emulation.h"\n')
    _run_compiler("-x", "c++-header", header, "-o", folder / "device.h.gch")
    return header


def _run_compiler(*arguments: str | Path) -> None:
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    subprocess.run([compiler, *FLAGS, *WARNINGS, f"-I{HERE}", *map(str, arguments)], check=True)


@cache
def compiled_kernel(text: str, instance: str) -> ctypes.CDLL:
    """The library of one instance of a kernel with this source; compiled once in a process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "kernel.cu").write_text(text)
        (folder / "instances.inl").write_text(f"KERNEL_INSTANCE({instance})\n")
        files = {"KERNEL": folder / "kernel.cu", "INSTANCES": folder / "instances.inl"}
        defines = [f'-D{name}="{file}"' for name, file in files.items()]
        return compiled("launch_host.cpp", folder, *defines)


def call(function: Any, *arguments: object) -> str:
    """Call it with tensors (by address), whole numbers, floats, texts; what went wrong, or ''."""
    function.restype = ctypes.c_char_p
    return function(*map(as_c, arguments)).decode()


def as_c(argument: Any) -> Any:
    """As a driver is given it."""
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    kinds = {float: ctypes.c_float, int: ctypes.c_int, str: lambda text: text.encode()}
    return kinds[type(argument)](argument)


class Device:
    """Launches calls on the processor: each tensor lies between guards, and what is in a result
    before is poison. texts: sources that stand for the package's, by kernel. launched: the calls.
    """

    def __init__(
        self,
        order: str = "forward",
        processors: int = 1,
        shared_bytes: int = SHARED_BYTES,
        **texts: str,
    ) -> None:
        self.order, self.processors, self._texts = ORDERS[order], processors, texts
        self.shared_bytes = shared_bytes
        self.launched: Any = []
        self.crossing = crossing_of(OTHERS)

    def load(self, kernel: str, instance: str) -> None:
        """Nothing: an instance is compiled when it is launched."""

    def sequence(self) -> int:
        """There is but one."""
        return 0

    def launch(self, call_: Call) -> None:
        """Run a call; what it wrote is in its tensors."""
        self.launched.append(call_)
        guarded = [
            _Guarded(each) if isinstance(each, torch.Tensor) else each for each in call_.arguments
        ]
        values = [as_c(each.inside if isinstance(each, _Guarded) else each) for each in guarded]
        addresses = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values)
        )
        text = self._texts.get(call_.kernel) or source.kernel(call_.kernel)
        launch = compiled_kernel(text, call_.instance).launch_emulated
        launch.restype = ctypes.c_char_p
        grid = *call_.grid, call_.threads, call_.shared_bytes, self.order
        failure = launch(call_.instance.encode(), addresses, *grid).decode()
        assert failure == ""
        for each in guarded:
            if isinstance(each, _Guarded):
                each.give_back()


class _Guarded:
    """A copy of a tensor's bytes with guards around it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        self._tensor = tensor
        self._memory = torch.full((tensor.nbytes + 2 * GUARD_BYTES,), POISON, dtype=torch.uint8)
        self.inside = self._memory[GUARD_BYTES : GUARD_BYTES + tensor.nbytes]
        self.inside.copy_(tensor.reshape(-1).view(torch.uint8))

    def give_back(self) -> None:
        """Copy the bytes back; nothing may have been written around them."""
        end = GUARD_BYTES + self._tensor.nbytes
        around = torch.cat([self._memory[:GUARD_BYTES], self._memory[end:]])
        assert bool((around == POISON).all()), "written beyond the end"
        self._tensor.view(-1).view(torch.uint8).copy_(self.inside)


def quantise(
    device: Any, x: torch.Tensor, n: int, bits: int, group: int, rotation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's integers (tokens, n, group) and worths (tokens, n), of the padding too."""
    quantised, worths = calls.quantise(device, x, n, bits, group, rotation)
    integers = layout.integers(quantised).reshape(len(x), len(worths), group)
    return integers, worths.T.contiguous()


def multiply(
    device: Any,
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Both kernels, one after the other: what `reference.linear` computes.  (tokens, rows)"""
    rows, n = norms.shape
    tiled = layout.repack(packed, norms, bits, group)
    activations = calls.quantise(device, x, n, bits, group, rotation)
    return calls.multiply(device, tiled, activations, rows, group, x.dtype)
