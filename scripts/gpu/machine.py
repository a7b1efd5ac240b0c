"""A GPU that is measured: its kernels, its clock, its memory, its versions."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch

from tq3.runtime.cuda import support
from tq3.runtime.cuda.calls import Launcher

Task = Callable[[], Any]
# Of a time, the median of at least so many, which together took at least so long: by then an idle
# device has its clocks.
LEAST_ROUNDS = 7
LEAST_SECONDS = 0.05
MIB = 2**20


class Captured(NamedTuple):
    """A CUDA graph of a task. result: what the task returned, overwritten by each replay."""

    replay: Callable[[], None]
    result: Any


class Machine(Protocol):
    """What is measured; tests have one that needs no GPU."""

    device: torch.device
    on: Launcher

    def seconds(self, task: Task) -> float:
        """Of one call, between two events of the stream: the median of some."""

    def capture(self, task: Task) -> Captured:
        """The graph of what the task launches, after one call of it."""

    def allocated(self, task: Task) -> tuple[int, int]:
        """Bytes of the device that the task left allocated, and had allocated at most."""


class Gpu:
    """torch's current CUDA device. on: a `tq3.runtime.cuda.device.Device`"""

    def __init__(self, on: Any) -> None:
        self.device, self.on = torch.device("cuda", torch.cuda.current_device()), on

    def seconds(self, task: Task) -> float:
        """As `Machine` says, after one call to warm up."""
        task()
        times: list[float] = []
        while len(times) < LEAST_ROUNDS or sum(times) < LEAST_SECONDS:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            task()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def capture(self, task: Task) -> Captured:
        """As `Machine` says; torch wants the first call on another stream than the usual one."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            task()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = task()
        return Captured(graph.replay, result)

    def allocated(self, task: Task) -> tuple[int, int]:
        """As `Machine` says."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before

    def compile(self, kernel: str, instance: str, folder: Path) -> None:
        """For this device, as a first call does it, but with this folder for codes."""
        _compiler().compiled(kernel, instance, self.on.architecture, folder)


def find() -> Gpu | None:
    """The current GPU; None where there is none, or none that runs tq3's kernels."""
    if not torch.cuda.is_available():
        return None
    on = support.launcher(torch.device("cuda"))
    return None if on is None else Gpu(on)


def versions() -> list[str]:
    """The GPU, what drives it, and what was compiled with: a line for each."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = (
        f"{found.name}, compute capability {found.major}.{found.minor}, "
        f"{found.multi_processor_count} multiprocessors, {found.total_memory / MIB:,.0f} MiB, "
        f"last cache {found.L2_cache_size / MIB:.0f} MiB"
    )
    nvrtc = ".".join(map(str, _compiler().version()))
    smi = "nvidia-smi --query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    return [
        gpu,
        f"driver, power limit, clocks: {_output(f'{smi} --format=csv,noheader')}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, NVRTC {nvrtc}, "
        f"commit {_output('git describe --always --dirty')}",
    ]


def _compiler() -> ModuleType:
    # It needs cuda-bindings, which are there where kernels run.
    from tq3.runtime.cuda import compiler  # noqa: PLC0415

    return compiler


def _output(command: str) -> str:
    try:
        run = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return "; ".join(run.stdout.splitlines())
