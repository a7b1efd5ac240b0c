"""Times `tq3 compress` against the floor: the same bytes read and written with nothing in between.

    python scripts/bench_compress.py --gigabytes 8 --rounds 3 --folder build/bench
    python scripts/bench_compress.py --sources BF16 FP8 FP4 INT4 --gigabytes 8 --workers 2

--gigabytes is the size of the weights as BF16: a source of FP8 has half of it.

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


CODES = {  # of a source: dtype, name, weights in an element
    "FP8": ("F8_E4M3", ".weight", 1),
    "FP4": ("I8", ".weight", 2),
    "INT4": ("I32", ".weight_packed", 8),
}
SCALES_OF = {  # dtype, name, rows and columns that share one
    "FP8": ("F32", ".weight_scale_inv", 128, 128),
    "FP4": ("F8_E8M0", ".scale", 1, 32),
    "INT4": ("BF16", ".weight_scale", 1, 32),
}
ONE = {"F32": np.float32(1e-4).tobytes(), "F8_E8M0": b"\x73", "BF16": b"\x80\x39"}
INTEGERS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CONFIG = {
    "INT4": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INTEGERS}}}
}


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run: wall and processor seconds; the process's peak memory where it is known."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int = 0


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {cpu_name()}"
    )
    for gigabytes in options.gigabytes:
        for kind in options.sources:
            source = make_checkpoint(options.folder / f"{kind}-{gigabytes:g}", gigabytes, kind)
            for workers in options.workers:
                for cold in options.cold:
                    compare(source, options, workers, cold)
            shutil.rmtree(source)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 4, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sources", nargs="+", default=["BF16"], choices=["BF16", *CODES])
    parser.add_argument("--cold", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", default="search", choices=SCALES)
    parser.add_argument("--equalize", action="store_true", help="as tq3 compress does by default")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def compare(source: Path, options: argparse.Namespace, workers: int, cold: bool) -> None:
    """Alternate floor and program; print medians and the ratio of each pair."""
    n_out, out, scale = output_bytes(source), options.folder / "out", options.scale
    words = ("--equalize" if options.equalize else "--no-equalize", "--scale", scale)
    prepare = drop_from_cache if cold else read_all
    floors, runs = [], []
    for _ in range(options.rounds):
        floors.append(timed(prepare, source, out, lambda: floor(source, out, n_out, workers)))
        runs.append(timed(prepare, source, out, lambda: program(source, out, workers, words)))
    n_in = sum(file.stat().st_size for file in shards(source))
    ratio = median(run.seconds / low.seconds for run, low in zip(runs, floors, strict=True))
    peak = max(run.peak_memory_bytes for run in runs)
    seconds, low_seconds = (median(run.seconds for run in each) for each in (runs, floors))
    cpu, low_cpu = (median(run.cpu_seconds for run in each) for each in (runs, floors))
    print(
        f"{source.name}, {n_in / 1e9:5.2f} GB, {scale}, {workers} workers, "
        f"{'cold' if cold else 'warm'}: "
        f"tq3 {seconds:6.2f} s = {n_in / seconds / 1e9:5.2f} GB/s, "
        f"floor {low_seconds:6.2f} s = {n_in / low_seconds / 1e9:5.2f} GB/s, "
        f"ratio {ratio:.2f}, processors {cpu:.2f} and {low_cpu:.2f} s, "
        f"peak memory {peak / 1e6:.0f} MB",
        flush=True,
    )


def timed(prepare: Callable[[Path], None], source: Path, out: Path, run: Callable[[], int]) -> Run:
    """One run on a prepared cache, with nothing left to write from before."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    prepare(source)
    before, start = os.times(), time.perf_counter()
    peak = run()
    seconds, after = time.perf_counter() - start, os.times()
    return Run(seconds, sum(after[:4]) - sum(before[:4]), peak)


def program(source: Path, out: Path, workers: int, words: tuple[str, ...]) -> int:
    """The whole command, start of the interpreter included; gives its peak memory."""
    command = [PROGRAM, "compress", str(source), str(out), "--json", *words]
    result = subprocess.run(
        [*command, "--workers", str(workers)], check=True, capture_output=True, text=True
    )
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


def make_checkpoint(folder: Path, gigabytes: float, kind: str = "BF16") -> Path:
    """A random checkpoint of layers, one shard a layer; the values do not change the speed."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    noise = random.standard_normal(2**25, np.float32) * np.float32(0.02)
    words = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    codes = random.integers(0, 127, 2**24, np.uint8).tobytes()  # none is NaN in E4M3
    per_layer = 2 * sum(int(np.prod(shape)) for shape in LAYER.values())
    weight_map: dict[str, str] = {}
    for layer in range(max(1, round(gigabytes * 1e9 / per_layer))):
        infos = [
            info for name, shape in LAYER.items() for info in tensors_of(layer, name, shape, kind)
        ]
        infos += [] if layer else [TensorInfo("model.embed_tokens.weight", "BF16", (1024, 4096))]
        file = folder / f"layer-{layer}.safetensors"
        header, offsets = build_header(infos, {"format": "pt"})
        with file.open("wb") as out:
            out.write(header)
            for info in sorted(infos, key=lambda each: offsets[each.name]):
                scale = info.dtype in ONE and kind != "BF16" and "norm" not in info.name
                some = (
                    ONE[info.dtype] * 2**16 if scale else words if info.dtype == "BF16" else codes
                )
                for start in range(0, info.n_bytes, len(some)):
                    out.write(some[: info.n_bytes - start])
        weight_map |= {info.name: file.name for info in infos}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    said = {"quantization_config": CONFIG[kind]} if kind in CONFIG else {}
    known = {"model_type": "llama", "head_dim": 128}  # which can be equalized
    (folder / "config.json").write_text(json.dumps(known | said))
    return folder


def tensors_of(layer: int, name: str, shape: tuple[int, ...], kind: str) -> list[TensorInfo]:
    """A weight as it is stored: itself, or its codes and scales."""
    stem = f"model.layers.{layer}.{name.removesuffix('.weight')}"
    if kind == "BF16" or len(shape) < 2:
        return [TensorInfo(f"{stem}.weight", "BF16", shape)]
    (dtype, codes, weights), (scale_dtype, scales, high, wide) = CODES[kind], SCALES_OF[kind]
    rows, columns = shape
    return [
        TensorInfo(stem + codes, dtype, (rows, columns // weights)),
        TensorInfo(stem + scales, scale_dtype, (-(-rows // high), -(-columns // wide))),
    ]


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
