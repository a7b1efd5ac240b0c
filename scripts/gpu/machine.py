"""A GPU that is measured: its kernels, its clock, its memory; or a processor, to rehearse on."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from gpu.rows import Row

from tq3.runtime.cuda import support
from tq3.runtime.cuda.calls import Launcher

Task = Callable[[], Any]
ROOT = Path(__file__).parents[2]
# Of a time, the median of at least so many, which together took at least so long.
LEAST_ROUNDS = 7
LEAST_SECONDS = 0.05
# An idle GPU runs at a fifth of its clock, and takes most of a second to raise it.
WARM_SECONDS = 1.5
MIB = 2**20


class Captured(NamedTuple):
    """A CUDA graph of a task. result: what the task returned, overwritten by each replay."""

    replay: Callable[[], None]
    result: Any


class Machine(Protocol):
    """What is measured; tests have one that needs no GPU."""

    device: torch.device
    on: Launcher

    def facts(self) -> Row:
        """The device, what drives it, and what was compiled with."""

    def warm(self) -> None:
        """Raise clocks."""

    def wait(self) -> None:
        """For all that was launched: what went wrong is raised here."""

    def seconds(self, task: Task) -> float:
        """Of one call, between two events of the stream: the median of some."""

    def capture(self, task: Task) -> Captured:
        """The graph of what the task launches, after one call of it."""

    def empty(self) -> None:
        """Launch a kernel that does nothing."""

    def memory(self) -> tuple[int, int]:
        """Bytes of the device that torch has allocated, and the most since this was asked last."""


class Gpu:
    """torch's current CUDA device. on: a `tq3.runtime.cuda.device.Device`"""

    def __init__(self, on: Any) -> None:
        self.device, self.on = torch.device("cuda", torch.cuda.current_device()), on

    def facts(self) -> Row:
        # It needs cuda-bindings, which are there where kernels run.
        from tq3.runtime.cuda import compiler  # noqa: PLC0415

        found = torch.cuda.get_device_properties(self.device)
        smi = "nvidia-smi --query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.mem"
        return _software() | {
            "GPU": found.name,
            "architecture": self.on.architecture,
            "multiprocessors": found.multi_processor_count,
            "MiB": found.total_memory // MIB,
            "MiB of L2": found.L2_cache_size // MIB,
            "driver, power limit, clocks": _output(f"{smi} --format=csv,noheader"),
            "NVRTC": ".".join(map(str, compiler.version())),
        }

    def warm(self) -> None:
        a = torch.randn(4096, 4096, dtype=torch.bfloat16, device=self.device)
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_SECONDS:
            for _ in range(20):
                a @ a
            self.wait()

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

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

    def empty(self) -> None:
        """As `Machine` says: torch's own, which spins for no clock."""
        torch.cuda._sleep(0)

    def memory(self) -> tuple[int, int]:
        found = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found


class Processor:
    """This processor in the place of a GPU: kernels are emulated, and times say nothing.

    on: launches calls here
    """

    device = torch.device("cpu")

    def __init__(self, on: Any) -> None:
        self.on = on

    def facts(self) -> Row:
        return _software() | {"GPU": "none, a rehearsal", "architecture": "none"}

    def warm(self) -> None:
        """Nothing to raise."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def seconds(self, task: Task) -> float:
        """Of a single call."""
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    def capture(self, task: Task) -> Captured:
        """As if it had been captured: a replay calls it, and writes into the first result."""
        result = task()

        def replay() -> None:
            again = task()
            if result is not None:
                result.copy_(again)

        return Captured(replay, result)

    def empty(self) -> None:
        """Nothing at all."""

    def memory(self) -> tuple[int, int]:
        """Nothing of a device."""
        return 0, 0


def find() -> Gpu | None:
    """The current GPU; None where there is none, or none that runs tq3's kernels."""
    if not torch.cuda.is_available():
        return None
    on = support.launcher(torch.device("cuda"))
    return None if on is None else Gpu(on)


def why_none() -> str:
    """The sentence for who has no such GPU."""
    if torch.cuda.is_available():
        return "tq3's kernels do not run on this GPU; the warning above says why"
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return (
        f"torch finds no GPU (torch {torch.__version__}, built {built}); run this where nvidia-smi "
        "lists one, with a CUDA build of torch"
    )


def rehearsal() -> Processor:
    """This processor as all modules see it from now on, with the tests' emulated kernels."""
    sys.path.append(str(ROOT / "tests"))
    from support.cuda.emulated import Device  # noqa: PLC0415  of a clone

    emulated: Any = Device()
    support.launcher = lambda device: emulated
    return Processor(emulated)


def _software() -> Row:
    return {
        "day": f"{date.today():%-d %b %Y}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "commit": _output("git describe --always --dirty"),
    }


def _output(command: str) -> str:
    try:
        run = subprocess.run(command.split(), capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return "; ".join(run.stdout.splitlines())
