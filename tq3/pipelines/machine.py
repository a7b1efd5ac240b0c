"""What this process may use of the machine, and what it has used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from tq3.errors import UsageError


def check_workers(workers: int | None) -> int:
    """The number of threads asked for; None is one a processor that this process may run on."""
    if workers is not None:
        if workers < 1:
            raise UsageError(f"--workers is {workers}", expected="at least 1")
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum is inherited from the process that started this one.
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if "VmHWM" in line), 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
