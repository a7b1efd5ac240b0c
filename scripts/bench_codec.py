"""Weights a second of every backend, as a share of copying the same bytes, on this machine.

    python scripts/bench_codec.py [--gib 1] [--rounds 5] [--backends avx2,numpy]
                                   [--scale search] [--torch | --sources]
    python scripts/bench_codec.py --code trellis --bits 3,4 --gib 0.03 --backends avx512,avx2

What is compared runs interleaved, one after the other in each round, and the median counts. The
source is larger than any cache (--gib); numpy and torch, which are slow, get a slice of it.

"Moved" are the bytes read and written: the weights, the codes and the norms. "Of memcpy" is that
over the bytes which np.copyto reads and writes in the same time, with as many threads, on the same
matrix. Two threads share the rows of one matrix.

--sources: weights of quantised sources to float32, four MiB of them at one time, as a run decodes
them, in processor time. "Of memcpy" is there, too, over bytes read and written: codes, scales and
floats. "Of encoding" is the share of the time that the same backend codes these floats in, 3 bits.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference, tables
from tq3.codec.backend import Backend, available_backends, get_backend
from tq3.codec.quantised import SCALE_TYPE
from tq3.codec.reference import WORD_TYPE
from tq3.format.quantised import Encoding
from tq3.format.recipe import CODES, SCALES

COLS, GROUP = 4096, 128
SLOW_WEIGHTS = 1 << 22
SOURCE_ROWS = 256  # decoded at one time
ENCODINGS = {
    "FP8, row": Encoding("e4m3", 8, (1, COLS), "F32"),
    "FP8, 128 x 128": Encoding("e4m3", 8, (128, 128), "F32"),
    "FP8, 1 x 32": Encoding("e4m3", 8, (1, 32), "U8"),
    "FP4, 1 x 32": Encoding("e2m1", 4, (1, 32), "U8"),
    "NVFP4 of ModelOpt": Encoding("nvfp4", 4, (1, 16), "F8_E4M3"),
    "NVFP4, divided": Encoding("nvfp4", 4, (1, 16), "F8_E4M3", is_divided=True),
    "INT4, 1 x 32": Encoding("packed_int", 4, (1, 32), "BF16"),
    "INT3, 1 x 128": Encoding("packed_int", 3, (1, 128), "BF16"),
    "INT8, row": Encoding("packed_int", 8, (1, COLS), "BF16"),
}
Task = Callable[[], Any]


class Matrix(NamedTuple):
    """A matrix with room for its compressed form and for what is decoded."""

    words: NDArray[Any]
    packed: NDArray[np.uint8]
    norms: NDArray[np.float32]
    decoded: NDArray[Any]

    def rows(self, first: int, last: int) -> Matrix:
        n = COLS // GROUP
        return Matrix(
            self.words[first:last],
            self.packed[first * n : last * n],
            self.norms[first:last],
            self.decoded[first:last],
        )

    def split(self, parts: int) -> list[Matrix]:
        edges = [len(self.words) * i // parts for i in range(parts + 1)]
        return [self.rows(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def make_matrix(dtype: str, bits: int, n_bytes: int) -> Matrix:
    """Gaussian weights: one block of rows again and again."""
    block = np.random.default_rng(0).normal(0, 0.02, (256, COLS)).astype(np.float32)
    block_words = reference.from_float32(block, dtype)
    copies = max(1, n_bytes // block_words.nbytes)
    words = np.tile(block_words, (copies, 1))
    n = COLS // GROUP
    packed = np.zeros((len(words) * n, GROUP * bits // 8), np.uint8)
    # Written once, so that no page is touched for the first time inside a measurement.
    decoded = np.empty_like(words)
    decoded.fill(0)
    return Matrix(words, packed, np.zeros((len(words), n), np.float32), decoded)


def encode_task(
    backend: Backend,
    matrices: Sequence[Matrix],
    dtype: str,
    bits: int,
    scale: str = "norm",
    code: str = "scalar",
) -> Task:
    def one(m: Matrix) -> None:
        backend.encode(m.words, dtype, bits, GROUP, m.packed, m.norms, scale, code)

    return in_threads(one, matrices)


def decode_task(
    backend: Backend, matrices: Sequence[Matrix], dtype: str, bits: int, code: str = "scalar"
) -> Task:
    def one(m: Matrix) -> None:
        backend.decode(m.packed, m.norms, bits, GROUP, m.decoded, dtype, code)

    return in_threads(one, matrices)


def copy_task(matrices: Sequence[Matrix]) -> Task:
    """The words of a matrix to where they are decoded."""
    return in_threads(lambda m: np.copyto(m.decoded, m.words), matrices)


def in_threads(work: Callable[[Matrix], None], matrices: Sequence[Matrix]) -> Task:
    if len(matrices) == 1:
        return lambda: work(matrices[0])
    pool = ThreadPoolExecutor(len(matrices))
    return lambda: list(pool.map(work, matrices))


def medians(
    tasks: dict[Any, Task], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, float]:
    """Seconds of each task: one round to warm up, then the median of interleaved rounds."""
    seconds: dict[Any, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            if number:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_width(
    names: Sequence[str], dtype: str, bits: int, n_bytes: int, rounds: int, scale: str, code: str
) -> None:
    matrix = make_matrix(dtype, bits, n_bytes)
    slow = matrix.rows(0, SLOW_WEIGHTS // COLS)
    for threads in (1, 2):
        tasks: dict[Any, Task] = {"memcpy": copy_task(matrix.split(threads))}
        weights: dict[Any, int] = {"memcpy": matrix.words.size}
        for name in names:
            whole = slow if name == "numpy" else matrix
            parts, backend = whole.split(threads), get_backend(name)
            tasks[name, "encode"] = encode_task(backend, parts, dtype, bits, scale, code)
            tasks[name, "decode"] = decode_task(backend, parts, dtype, bits, code)
            weights[name, "encode"] = weights[name, "decode"] = whole.words.size
        seconds = medians(tasks, rounds)
        copied = matrix.words.nbytes * 2 / seconds["memcpy"]
        for key in list(tasks)[1:]:
            report(key, dtype, bits, threads, weights[key] / seconds[key], copied)


def report(
    key: tuple[str, str], dtype: str, bits: int, threads: int, rate: float, copied: float
) -> None:
    """`copied`: bytes that memcpy read and wrote in a second."""
    source = np.dtype(WORD_TYPE[dtype]).itemsize
    moved = source + bits / 8 + 4 / GROUP
    backend, direction = key
    print(
        f"{backend:9} {direction}  {dtype:4} {bits} bits  {threads} thread{'s'[: threads - 1]:1} "
        f"{rate / 1e9:7.3f} G weights/s  {rate * moved / 1e9:6.2f} GB/s moved  "
        f"{rate * moved / copied:6.1%} of memcpy ({copied / 1e9:.1f} GB/s)",
        flush=True,
    )


def bench_sources(names: Sequence[str], n_bytes: int, rounds: int, scale: str) -> None:
    """Each encoding through each backend; `n_bytes` of float32, a stretch after the other."""
    stretches = max(1, n_bytes // (SOURCE_ROWS * COLS * 4))
    out, other = (np.ones((SOURCE_ROWS, COLS), np.float32) for _ in range(2))
    rng = np.random.default_rng(0)
    floats = Matrix(
        rng.normal(0, 0.02, (SOURCE_ROWS, COLS)).astype(np.float32).view(np.uint32),
        np.zeros((SOURCE_ROWS * COLS // GROUP, GROUP * 3 // 8), np.uint8),
        np.zeros((SOURCE_ROWS, COLS // GROUP), np.float32),
        out.view(np.uint32),
    )
    for label, encoding in ENCODINGS.items():
        shape = stretches, SOURCE_ROWS, encoding.row_bytes(COLS)
        codes = rng.integers(0, 126, shape, np.uint8)  # none of them is NaN in E4M3
        lines = np.arange(SOURCE_ROWS) // encoding.block[0]
        words = SCALE_TYPE[encoding.scale_dtype]
        grid = int(lines[-1]) + 1, encoding.grid(1, COLS)[1]
        one = {1: 0x38, 2: 0x3C00, 4: 0x3F800000}[np.dtype(words).itemsize]
        scales: NDArray[Any] = np.full(grid, one, words)
        factors = np.ones(SOURCE_ROWS, np.float32) if encoding.kind == "nvfp4" else None

        def decode(name: str, e: Encoding = encoding, c: Any = codes, s: Any = scales) -> None:
            backend = get_backend(name)
            for stretch in c[: 1 if name == "numpy" else None]:
                backend.dequantize(e, stretch, s, out, lines=lines, global_scale=factors)  # noqa: B023

        tasks: dict[Any, Task] = {"memcpy": lambda: np.copyto(out, other)}
        tasks |= {name: partial(decode, name) for name in names}
        for name in names:
            tasks["encode", name] = encode_task(get_backend(name), [floats], "F32", 3, scale)
        seconds = medians(tasks, rounds, time.thread_time)
        copied = out.nbytes * 2 / seconds["memcpy"]
        for name in names:
            each = seconds[name] / (1 if name == "numpy" else stretches)
            source = codes[0].nbytes + scales.nbytes
            moved = (source + out.nbytes) / each
            print(
                f"{name:9} {label:18} {out.size / each / 1e9:7.3f} G weights/s  "
                f"{source / each / 1e9:6.2f} GB/s of source  {moved / 1e9:6.2f} GB/s moved  "
                f"{moved / copied:6.1%} of memcpy ({copied / 1e9:.1f} GB/s)  "
                f"{each / seconds['encode', name]:6.1%} of encoding",
                flush=True,
            )


def bench_torch(bits: int, rounds: int) -> None:
    """Ordinary torch encoders against the default backend: BF16, one thread, one slice."""
    matrix = make_matrix("BF16", bits, SLOW_WEIGHTS * 2)
    encoders = torch_encoders(matrix.words, bits)
    backend = get_backend()
    seconds = medians(
        {**encoders, backend.name: encode_task(backend, [matrix], "BF16", bits)}, rounds
    )
    for name, value in seconds.items():
        times, speed = value / seconds[backend.name], matrix.words.size / value / 1e9
        print(f"{name:21}  BF16 {bits} bits  {speed:.4f} G weights/s, 1/{times:.0f}")
    for name, encode in encoders.items():
        same = np.mean(encode()[0].numpy() == matrix.packed)
        print(f"{name}: {same:.4%} of its bytes are ours")


def torch_encoders(words: NDArray[Any], bits: int) -> dict[str, Task]:
    """What an ordinary implementer writes, with the two ways to transform a group."""
    import torch  # noqa: PLC0415  only this comparison needs it

    torch.set_num_threads(1)
    weights = torch.from_numpy(words.view(np.int16)).view(torch.bfloat16)
    d1, d2 = (torch.from_numpy(d.copy()) for d in tables.signs(GROUP))
    dense = torch.from_numpy(reference.hadamard(np.eye(GROUP, dtype=np.float32)))
    levels = torch.from_numpy(tables.codebook(bits, GROUP).copy())
    boundaries = (levels[1:] + levels[:-1]) / 2
    shifts = torch.arange(bits, dtype=torch.uint8)
    places = (1 << torch.arange(8)).to(torch.uint8)

    def butterflies(groups: Any) -> Any:
        stride = GROUP // 2
        while stride:
            a, b = groups.reshape(len(groups), -1, 2, stride).unbind(2)
            groups = torch.stack([a + b, a - b], dim=2).reshape(len(groups), GROUP)
            stride //= 2
        return groups

    def encode(transform: Callable[[Any], Any]) -> Any:
        groups = weights.reshape(-1, GROUP).float()
        norm = groups.norm(dim=1, keepdim=True)
        rotated = transform(groups / norm.clamp_min(1e-30) * d1) / GROUP**0.5 * d2
        codes = torch.bucketize(rotated, boundaries)
        norms = norm[:, 0] / levels[codes].norm(dim=1)
        planes = (codes.to(torch.uint8)[..., None] >> shifts) & 1
        packed = (planes.reshape(len(groups), -1, 8) * places).sum(dim=-1, dtype=torch.uint8)
        return packed, norms

    return {
        "torch, butterflies": partial(encode, butterflies),
        "torch, matrix product": partial(encode, lambda groups: groups @ dense),
    }


def machine() -> str:
    """Processor, cores, commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the source matrix")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", default=",".join(available_backends()))
    parser.add_argument("--dtypes", default="BF16,F16,F32")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--scale", default="norm", choices=SCALES)
    parser.add_argument("--code", default="scalar", choices=CODES)
    parser.add_argument("--torch", action="store_true", help="compare with a torch encoder instead")
    parser.add_argument("--sources", action="store_true", help="decode quantised sources instead")
    options = parser.parse_args()
    print(f"{machine()}, default backend {get_backend().name}")
    if options.sources:
        names = options.backends.split(",")
        return bench_sources(names, int(options.gib * 2**30), options.rounds, options.scale)
    for bits in map(int, options.bits.split(",")):
        if options.torch:
            bench_torch(bits, options.rounds)
            continue
        for dtype in options.dtypes.split(","):
            names = options.backends.split(",")
            n_bytes = int(options.gib * 2**30)
            how = options.scale, options.code
            bench_width(names, dtype, bits, n_bytes, options.rounds, *how)


if __name__ == "__main__":
    main()
