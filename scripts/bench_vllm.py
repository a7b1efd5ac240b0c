"""Tokens a second of vLLM, packed beside dense: both engines in one process, asked in turn.

    python scripts/bench_vllm.py SOURCE [--requests 1 8 32] [--tokens 24] [--rounds 3] [--json FILE]

Compresses SOURCE to 3 bits, decodes that to bfloat16 as the dense twin, and lets both answer the
same prompts of 16 tokens at temperature 0, without an end. Figures are of decoding: the time of all
tokens less that of the first, medians over the rounds. Processor time, of all threads of the
process, counts where other programs run on the machine, and best with OMP_NUM_THREADS=1: several
threads wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Read by vLLM when it is imported: the models in this process, so that its clock is theirs.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch
from vllm import LLM, SamplingParams

import tq3
from tq3.runtime import native

PROMPT_TOKENS = 16


class Seconds(NamedTuple):
    """What one run took."""

    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure vLLM with a packed and a dense model.")
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", help="of activations and dense weights")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        packed, dense = Path(work, "packed"), Path(work, "dense")
        tq3.compress(asked.source, packed)
        tq3.restore(packed, dense, dtype=asked.dtype)
        engines = {
            folder.name: start(folder, asked.dtype, max(asked.requests))
            for folder in (dense, packed)
        }
        rows = [measure(engines, n, asked.tokens, asked.rounds) for n in asked.requests]
    print(f"{torch.get_num_threads()} threads, kernels {native.get_kernels().name}")
    show(rows)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


def start(folder: Path, dtype: str, n_requests: int) -> LLM:
    return LLM(
        model=str(folder),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=n_requests,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )


def measure(engines: dict[str, LLM], n: int, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens a second and processor seconds a token of each, with `n` requests at once."""
    found: dict[str, list[Seconds]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name, llm in engines.items():
            first, all_of_them = run(llm, n, 1), run(llm, n, tokens)
            if turn:  # the first turn warms up
                spent = (b - a for a, b in zip(first, all_of_them, strict=True))
                found[name].append(Seconds(*spent))
    made = n * (tokens - 1)
    row: dict[str, float] = {"requests": n}
    for name, runs in found.items():
        row[f"{name}, tokens/s"] = made / statistics.median(one.wall for one in runs)
        processor = statistics.median(one.processor for one in runs)
        row[f"{name}, processor ms a token"] = 1000 * processor / made
    return row


def run(llm: LLM, n: int, tokens: int) -> Seconds:
    prompts = [
        {"prompt_token_ids": [(7 * i + 31 * j) % 1000 + 10 for j in range(PROMPT_TOKENS)]}
        for i in range(n)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    wall, processor = time.perf_counter(), time.process_time()
    llm.generate(prompts, sampling, use_tqdm=False)
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def show(rows: list[dict[str, float]]) -> None:
    """A table for docs/serving.md."""
    print("|", " | ".join(rows[0]), "|")
    print("|", " | ".join("---" for _ in rows[0]), "|")
    for row in rows:
        print("|", " | ".join(f"{value:.4g}" for value in row.values()), "|")


if __name__ == "__main__":
    main()
