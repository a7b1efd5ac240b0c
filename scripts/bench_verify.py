"""Times `tq3 verify` against the floor: the same bytes read by as many threads and nothing else.

    python scripts/bench_verify.py --gigabytes 16 --rounds 3 --folder build/bench

Floor and program alternate in one run, with the checkpoint in the page cache (warm) and without
(cold). With --source the source is read and compared too, by both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from bench_compress import CHUNK, PROGRAM, Run, cpu_name, drop_from_cache, make_checkpoint, read_all

AHEAD = 8 * 2**20  # as `tq3` asks the disk for what it reads next


def main() -> None:
    options = parse()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {cpu_name()}"
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    source, path = options.folder / "source", options.folder / "tq3"
    if not path.exists():
        make_checkpoint(source, options.gigabytes)
        command = [PROGRAM, "compress", "--quiet", "--no-equalize", str(source), str(path)]
        subprocess.run(command, check=True)
    for workers in options.workers:
        for cold in (False, True):
            compare([path], workers, cold, options.rounds)
            if options.source:
                compare([path, source], workers, cold, options.rounds)
    if not options.keep:
        shutil.rmtree(options.folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=16, help="of the source")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--source", action="store_true", help="compare with the source as well")
    parser.add_argument("--keep", action="store_true", help="leave the folder for the next run")
    return parser.parse_args()


def compare(folders: list[Path], workers: int, cold: bool, rounds: int) -> None:
    """Alternate floor and program; print medians and the ratio of each pair."""
    prepare = drop_from_cache if cold else read_all
    floors, runs = [], []
    for _ in range(rounds):
        floors.append(timed(prepare, folders, lambda: floor(folders, workers)))
        runs.append(timed(prepare, folders, lambda: program(folders, workers)))
    n_bytes = sum(file.stat().st_size for file in files(folders))
    ratio = median(run.seconds / low.seconds for run, low in zip(runs, floors, strict=True))
    seconds, low_seconds = (median(run.seconds for run in each) for each in (runs, floors))
    print(
        f"{n_bytes / 1e9:5.2f} GB{' with source' if len(folders) > 1 else ''}, {workers} workers, "
        f"{'cold' if cold else 'warm'}: "
        f"tq3 {seconds:6.2f} s = {n_bytes / seconds / 1e9:5.2f} GB/s, "
        f"floor {low_seconds:6.2f} s = {n_bytes / low_seconds / 1e9:5.2f} GB/s, "
        f"ratio {ratio:.2f}, peak memory {max(run.peak_memory_bytes for run in runs) / 1e6:.0f} MB",
        flush=True,
    )


def timed(prepare: Callable[[Path], None], folders: list[Path], run: Callable[[], int]) -> Run:
    """One run on a prepared cache."""
    for folder in folders:
        prepare(folder)
    start = time.perf_counter()
    peak = run()
    return Run(time.perf_counter() - start, peak)


def program(folders: list[Path], workers: int) -> int:
    """The whole command, start of the interpreter included; gives its peak memory."""
    command = [PROGRAM, "verify", str(folders[0]), "--json", "--workers", str(workers)]
    command += ["--source", str(folders[1])] if len(folders) > 1 else []
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(result.stdout)
    if not answer["checksums"]:
        raise SystemExit("the checkpoint has no manifest: nothing to measure")
    return int(answer["peak_memory_bytes"])


def floor(folders: list[Path], workers: int) -> int:
    """Read every byte, into one buffer a thread."""
    descriptors = {file: os.open(file, os.O_RDONLY) for file in files(folders)}
    spans = [
        (file, offset, min(CHUNK, file.stat().st_size - offset))
        for file in descriptors
        for offset in range(0, file.stat().st_size, CHUNK)
    ]

    def work(first: int) -> None:
        buffer = memoryview(bytearray(CHUNK))
        for file, offset, length in spans[first::workers]:
            os.posix_fadvise(descriptors[file], offset + AHEAD, length, os.POSIX_FADV_WILLNEED)
            os.preadv(descriptors[file], [buffer[:length]], offset)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    for descriptor in descriptors.values():
        os.close(descriptor)
    return 0


def files(folders: list[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


if __name__ == "__main__":
    main()
