"""NVIDIA's own tools, where they are and work: compute-sanitizer and ncu.

Each runs a section of this script in a process of its own.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from gpu.layers import name_of
from gpu.machine import Machine
from gpu.plan import Plan
from gpu.rows import Cases, Row, Skipped
from gpu.timing import GROUP, Through, activations, tiles_of

from tq3.runtime.cuda import linear

# Where toolkits are installed, beside the PATH.
USUAL = "/usr/local/cuda/bin"
FOUND_ERRORS = 9
PROFILED_TOKENS = (1, 4, 16, 32)
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "% of DRAM": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "MB of L2": ("lts__t_bytes.sum", 1e-6),
    "% of L1 hit": ("l1tex__t_sector_hit_rate.pct", 1),
    "% of warps": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    "% of issue": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
}


def sanitizer(gpu: Machine, plan: Plan, command: list[str]) -> Cases:
    """Accesses out of bounds and races of shared memory, in one case of each kind.

    command: runs the section `few`
    """
    for tool in ("memcheck", "racecheck"):
        yield f"{tool}, one case of each kind", partial(sanitized, tool, command)


def sanitized(tool: str, command: list[str]) -> Row:
    """What it sums up; an error of it is a fault, a tool that doesn't work is skipped."""
    # In torch's blocks of 2 MB an access beyond a tensor is one within bounds.
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--launch-timeout", "0"]
    run = subprocess.run(
        [_tool("compute-sanitizer"), *options, *command],
        capture_output=True,
        text=True,
        env=alone,
        check=False,
    )
    said = [line.lstrip("= ") for line in run.stdout.splitlines() if line.startswith("=========")]
    if run.returncode == FOUND_ERRORS:
        raise AssertionError("; ".join(line for line in said if line)[:2000])
    if run.returncode or not said:
        raise Skipped(f"{tool} ended with code {run.returncode}: {_last_line(run)}")
    return {"summary": said[-1]}


def profile(gpu: Machine, plan: Plan, command: list[str]) -> Cases:
    """What ncu counts in the multiplication. command: runs the section `launches`"""
    tokens = ", ".join(map(str, PROFILED_TOKENS))
    yield f"{name_of(plan.shapes[0])}, 3 bits, {tokens} tokens", partial(profiled, command)


def launches(gpu: Machine, plan: Plan) -> Cases:
    """A layer called once for each number of tokens: what ncu looks at."""
    (rows, columns), forced = plan.shapes[0], Through(gpu.on, most_tokens=max(PROFILED_TOKENS))
    layer = tiles_of(gpu, (), plan.shapes[0], 3, 0)[0]

    def call(tokens: int) -> Row:
        x = activations(tokens, columns, device=gpu.device)
        linear.linear(forced, x, layer, rows, GROUP, GROUP)
        return {}

    for tokens in PROFILED_TOKENS:
        yield f"{tokens} tokens", partial(call, tokens)


def profiled(command: list[str]) -> Row:
    """By kernel, in the order of launches."""
    options = ["--csv", "--print-units", "base", "--clock-control", "none"]
    chosen = ["--kernel-name", "regex:multiply", "--launch-count", str(len(PROFILED_TOKENS))]
    metrics = ["--metrics", ",".join(name for name, _ in METRICS.values())]
    command = [_tool("ncu"), *options, *chosen, *metrics, *command]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    # Numbers have separators; what the program prints itself is no CSV.
    lines = [line for line in run.stdout.splitlines() if line.startswith('"')]
    found: Row = {}
    for line in csv.DictReader(lines):
        kernel = f"{line['ID']}: {re.split('[<(]', line['Kernel Name'])[0]}"
        for column, (metric, scale) in METRICS.items():
            if line["Metric Name"] == metric:
                value = float(line["Metric Value"].replace(",", ""))
                found.setdefault(column, {})[kernel] = value * scale
    if not found:
        raise Skipped(f"ncu ended with code {run.returncode}: {_last_line(run)}")
    return found


def _tool(name: str) -> str:
    path = os.pathsep.join((os.environ.get("PATH", ""), USUAL))
    return shutil.which(name, path=path) or _missing(name)


def _missing(name: str) -> str:
    raise Skipped(f"{name} is neither in the PATH nor in {Path(USUAL)}")


def _last_line(run: subprocess.CompletedProcess[str]) -> str:
    lines = (run.stderr + run.stdout).strip().splitlines()
    return lines[-1] if lines else "it said nothing"
