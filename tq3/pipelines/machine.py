"""What this process may use of the machine, and what it has used."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tq3.errors import UsageError

# A worker encodes about 5 GB a second: more of them only take memory.
_ENOUGH_FOR_ANY_DISK = 16


def check_workers(workers: int | None, connections: int = 1) -> int:
    """The number of threads asked for; None is one a processor that may be used, at most 16.

    connections: threads that the source needs; one that waits for the network uses no processor
    """
    if workers is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        processors = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        return max(min(processors, _ENOUGH_FOR_ANY_DISK), connections)
    if workers < 1:
        raise UsageError(f"--workers is {workers}", expected="at least 1")
    return workers


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum is inherited from the process that started this one.
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if "VmHWM" in line), 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block Python does not look for cycles.

    A plan is a hundred thousand objects that stay; looking through them again and again takes an
    eighth of the time of planning.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
