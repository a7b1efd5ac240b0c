"""Machine code that is compiled where there is no GPU, and carried to one.

A process reads codes only from a folder of its own user that nobody else may write to, which what
was carried may not be: `adopt` copies it to one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from gpu import cases
from gpu.cases import Case
from gpu.kinds import KINDS

from tq3.runtime.cuda import support
from tq3.runtime.cuda.crossings import OTHERS, crossing_of
from tq3.runtime.cuda.ready import Asked

# As `tq3.runtime.cuda.compiler.default_cache` has it below $XDG_CACHE_HOME.
BELOW = Path("tq3", "kernels")
Instance = tuple[str, str]


def instances() -> list[Instance]:
    """All that cases ask for, and those of serving first."""
    device, on = torch.device("cpu"), Asked(1, 0, crossing_of(OTHERS))
    before, support.launcher = support.launcher, lambda device: on
    try:
        for case in sorted(cases.all_cases(), key=lambda case: not case.is_served):
            if case.kind != "real shape":
                small = _small(case)
                KINDS[case.kind][0](small, cases.draw(small), on, device)
    finally:
        support.launcher = before
    return list(on.instances)


def _small(case: Case) -> Case:
    # Of rows and groups, only those of split layers choose an instance.
    return case if case.kind == "split" else replace(case, rows=1, n=1)


def compile_all(architecture: str, folder: Path) -> Iterator[str]:
    """A line for each instance; codes come to lie in `folder`, as $XDG_CACHE_HOME."""
    target = folder / BELOW
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    task = partial(_compile, architecture, target)
    # Not forked: torch has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(task, instances())


def _compile(architecture: str, folder: Path, instance: Instance) -> str:
    from tq3.runtime.cuda import compiler  # noqa: PLC0415  cuda-bindings may be missing

    start = time.perf_counter()
    code = compiler.compiled(*instance, architecture, folder)
    seconds = time.perf_counter() - start
    return f"{instance[1]}: {len(code.cubin):,} bytes, {seconds:.2f} s"


def adopt(folder: Path, into: Path) -> None:
    """Copy codes for who takes `into` as $XDG_CACHE_HOME: what lies in `folder` will be run."""
    target = into / BELOW
    target.mkdir(mode=0o700, parents=True)
    found = sorted((folder / BELOW).glob("*.cubin"))
    if not found:
        raise SystemExit(f"gpu_check: no *.cubin in {folder / BELOW}; --compile makes them")
    for file in found:
        shutil.copyfile(file, target / file.name)
