"""Times one run beside parts at once and their joining: bytes moved, processors, wall, memory.

    python scripts/bench_parts.py --gigabytes 8 --parts 2 --rounds 3 --folder build/bench

One run has as many threads as all parts together. Bytes are those that processes asked the system
to read and write, whether from a disk or from its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench_compress import cpu_name, make_checkpoint, read_all

COMMAND = [sys.executable, "-m", "tq3"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    wall: float
    cpu: float
    memory: int
    read: int
    written: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of all parts together")
    parser.add_argument("--shard-size", default="400MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = make_checkpoint(options.folder / "source", options.gigabytes)
    print(f"{os.cpu_count()} processors, {cpu_name()}, {options.gigabytes:g} GB")
    found: dict[str, list[list[Cost]]] = {"one run": [], "parts": [], "finish": []}
    for _ in range(options.rounds):
        for name, costs in measure(source, options).items():
            found[name].append(costs)
            print(f"  {name}: {in_words([costs])}", flush=True)
    for name, rounds in found.items():
        print(f"{name}, median: {in_words(rounds)}")
    shutil.rmtree(source)


def measure(source: Path, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """One run, and the parts at once with their joining; the same bytes by both."""
    whole, out = options.folder / "whole", options.folder / "out"
    for folder in (whole, out):
        shutil.rmtree(folder, ignore_errors=True)
    base = ["compress", str(source)]
    shared = ["--max-shard-size", options.shard_size]
    read_all(source)
    threads = str(options.threads)
    found = {"one run": run([[*base, str(whole), *shared, "--workers", threads]])}
    read_all(source)
    each = str(max(1, options.threads // options.parts))
    parts = [
        [*base, str(out), *shared, "--workers", each, "--part", f"{n}/{options.parts}"]
        for n in range(1, options.parts + 1)
    ]
    found["parts"] = run(parts)
    found["finish"] = run([["finish", str(out), "--workers", threads]])
    subprocess.run(["diff", "-r", str(whole), str(out)], check=True)
    return found


def run(commands: list[list[str]]) -> list[Cost]:
    """Run these at once, and see what each has taken when it has ended."""
    started = time.perf_counter()
    running = [
        subprocess.Popen([*COMMAND, *words, "--json", "--quiet"], stdout=subprocess.PIPE)
        for words in commands
    ]
    return [ended(process, started) for process in running]


def ended(process: subprocess.Popen[bytes], started: float) -> Cost:
    """Wait for a process, and read its figures before it is gone."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall = time.perf_counter() - started
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    moved = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.args
    assert process.stdout
    memory = json.loads(process.stdout.read())["peak_memory_bytes"]
    return Cost(wall, used.ru_utime + used.ru_stime, memory, moved["rchar"], moved["wchar"])


def in_words(rounds: list[list[Cost]]) -> str:
    """The median round: the longest wall, sums, and the largest process."""
    wall = median(max(each.wall for each in costs) for costs in rounds)
    cpu = median(sum(each.cpu for each in costs) for costs in rounds)
    memory = max(each.memory for costs in rounds for each in costs)
    read = median(sum(each.read for each in costs) for costs in rounds)
    written = median(sum(each.written for each in costs) for costs in rounds)
    return (
        f"{wall:.1f} s, {cpu:.1f} s of processors, {memory / 1e6:.0f} MB each, "
        f"{read / 1e9:.2f} GB read, {written / 1e9:.2f} GB written"
    )


if __name__ == "__main__":
    main()
