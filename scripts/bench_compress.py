"""Times `tq3 compress` against the floor: the same bytes read and written with nothing in between.

    python scripts/bench_compress.py --gigabytes 8 --rounds 3 --folder build/bench

Floor and program alternate in one run, with the source in the page cache (warm) and without (cold).
Both use as many threads, blocks of some MiB, reserved files and a flush to the disk at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from tq3.format.header import TensorInfo, build_header
from tq3.format.recipe import SCALES

PROGRAM = str(Path(sys.executable).with_name("tq3"))
CHUNK = 4 * 2**20
LAYER = {  # the shapes of a 7B model's layer, 202 M weights
    "self_attn.q_proj.weight": (4096, 4096),
    "self_attn.k_proj.weight": (1024, 4096),
    "self_attn.v_proj.weight": (1024, 4096),
    "self_attn.o_proj.weight": (4096, 4096),
    "mlp.gate_proj.weight": (12288, 4096),
    "mlp.up_proj.weight": (12288, 4096),
    "mlp.down_proj.weight": (4096, 12288),
    "input_layernorm.weight": (4096,),
    "post_attention_layernorm.weight": (4096,),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run: wall seconds, and the process's peak memory where it is known."""

    seconds: float
    peak_memory_bytes: int = 0


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {cpu_name()}"
    )
    for gigabytes in options.gigabytes:
        source = make_checkpoint(options.folder / f"source-{gigabytes:g}", gigabytes)
        for workers in options.workers:
            for cold in (False, True):
                compare(source, options, workers, cold)
        shutil.rmtree(source)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", default="search", choices=SCALES)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def compare(source: Path, options: argparse.Namespace, workers: int, cold: bool) -> None:
    """Alternate floor and program, with and without equalized columns; print medians."""
    n_out, out = output_bytes(source), options.folder / "out"
    prepare = drop_from_cache if cold else read_all
    ways = ("--no-equalize", "--equalize")
    floors: list[Run] = []
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        floors.append(timed(prepare, source, out, lambda: floor(source, out, n_out, workers)))
        for way in ways:
            words = (way, "--scale", options.scale, "--workers", str(workers))
            run = partial(program, source, out, words)
            runs[way].append(timed(prepare, source, out, run))
    n_in = sum(file.stat().st_size for file in shards(source))
    low = median(run.seconds for run in floors)
    print(
        f"{n_in / 1e9:5.2f} GB, {options.scale}, {workers} workers, {'cold' if cold else 'warm'}: "
        f"floor {low:6.2f} s = {n_in / low / 1e9:5.2f} GB/s"
    )
    for way in ways:
        seconds = median(run.seconds for run in runs[way])
        ratio = median(a.seconds / b.seconds for a, b in zip(runs[way], floors, strict=True))
        peak = max(run.peak_memory_bytes for run in runs[way])
        print(
            f"  {way:13} {seconds:6.2f} s = {n_in / seconds / 1e9:5.2f} GB/s, "
            f"ratio {ratio:.2f}, peak memory {peak / 1e6:.0f} MB",
            flush=True,
        )


def timed(prepare: Callable[[Path], None], source: Path, out: Path, run: Callable[[], int]) -> Run:
    """One run on a prepared cache, with nothing left to write from before."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    prepare(source)
    start = time.perf_counter()
    peak = run()
    return Run(time.perf_counter() - start, peak)


def program(source: Path, out: Path, words: tuple[str, ...]) -> int:
    """The whole command, start of the interpreter included; gives its peak memory."""
    command = [PROGRAM, "compress", str(source), str(out), "--json", *words]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(result.stdout)["peak_memory_bytes"])


def floor(source: Path, out: Path, n_out: int, workers: int) -> int:
    """Read every source byte and write `n_out` bytes in step, from one buffer a thread."""
    out.mkdir()
    spans = [
        (file, offset, min(CHUNK, file.stat().st_size - offset))
        for file in shards(source)
        for offset in range(0, file.stat().st_size, CHUNK)
    ]
    share = n_out // len(spans)
    descriptor = os.open(out / "floor", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, n_out)
    sources = {file: os.open(file, os.O_RDONLY) for file in shards(source)}

    def work(first: int) -> None:
        buffer = memoryview(bytearray(CHUNK))
        for index in range(first, len(spans), workers):
            file, offset, length = spans[index]
            os.preadv(sources[file], [buffer[:length]], offset)
            os.pwrite(descriptor, buffer[:share], index * share)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    os.fsync(descriptor)
    for each in (descriptor, *sources.values()):
        os.close(each)
    return 0


def make_checkpoint(folder: Path, gigabytes: float) -> Path:
    """A random bf16 checkpoint of layers, one shard a layer; the values do not change the speed."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(2**25, np.float32) * np.float32(0.02)
    words = memoryview((noise.view(np.uint32) >> 16).astype(np.uint16)).cast("B")
    per_layer = 2 * sum(int(np.prod(shape)) for shape in LAYER.values())
    weight_map: dict[str, str] = {}
    table = TensorInfo("model.embed_tokens.weight", "BF16", (1024, 4096))
    for layer in range(max(1, round(gigabytes * 1e9 / per_layer))):
        infos = [
            TensorInfo(f"model.layers.{layer}.{name}", "BF16", shape)
            for name, shape in LAYER.items()
        ]
        infos += [table] if layer == 0 else []
        n_bytes = sum(info.n_bytes for info in infos)
        file = folder / f"layer-{layer}.safetensors"
        with file.open("wb") as out:
            out.write(build_header(infos, {"format": "pt"})[0])
            for start in range(0, n_bytes, len(words)):
                out.write(words[: min(len(words), n_bytes - start)])
        weight_map |= {info.name: file.name for info in infos}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "llama", "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def output_bytes(source: Path) -> int:
    """Tensor bytes that compress will write, from its own plan."""
    command = [PROGRAM, "compress", str(source), "x", "--dry-run", "--json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(result.stdout)["n_bytes"])


def shards(source: Path) -> list[Path]:
    return sorted(source.glob("*.safetensors"))


def read_all(source: Path) -> None:
    """Bring every source byte into the page cache."""
    buffer = bytearray(CHUNK)
    for file in shards(source):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def drop_from_cache(source: Path) -> None:
    """Ask the system to forget the source files; they are clean, so it does."""
    for file in shards(source):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")


if __name__ == "__main__":
    main()
