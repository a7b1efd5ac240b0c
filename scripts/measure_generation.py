"""Let one model generate, alone in its process, and print as JSON what that took.

    python scripts/measure_generation.py FOLDER [--prompt TEXT] [--tokens N] [--compile]

A TQ3 folder is served packed. Memory is the process's own: what loading and generating added to
that of Python, torch and Transformers, and the peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import tq3
import tq3.integrations.transformers  # its memory is not the model's

PROMPT = "The capital of France is"


class Clock:
    """A streamer that notes when each token comes; the first `put` is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def tokens_per_second(self) -> float:
        """From the second new token on: the first one is the prompt's work."""
        _, first, *others = self.times
        return 1 / statistics.median(b - a for a, b in zip([first, *others], others, strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure generation with one model.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens")
    parser.add_argument("--dtype", default="bfloat16", help="of activations and unpacked weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward")
    print(json.dumps(measure(**vars(parser.parse_args()))))


def measure(
    folder: Path, prompt: str, tokens: int, dtype: str, device: str, compile: bool
) -> dict[str, Any]:
    """The continuation, tokens a second, seconds of loading and compiling, bytes of memory."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    model = load(folder, dtype, device)
    loaded = time.perf_counter()
    if compile:
        compile_forward(model)
    # A static cache of another length would be compiled anew; without one, two tokens are warm.
    generate(folder, model, prompt, tokens if compile else 2)
    warm = time.perf_counter()
    text, clock = generate(folder, model, prompt, tokens)
    compiled = warm - loaded - (time.perf_counter() - warm)
    return {
        "load_seconds": loaded - start,
        "compile_seconds": compiled if compile else None,
        "text": text,
        "tokens_per_second": clock.tokens_per_second(),
        "weight_bytes": weight_bytes(model),
        "resident_bytes": psutil.Process().memory_info().rss - before,
        "library_bytes": before,
        "device_bytes": torch.cuda.max_memory_allocated() if device.startswith("cuda") else None,
    }


def load(folder: Path, dtype: str, device: str) -> PreTrainedModel:
    """A TQ3 folder by tq3.load, any other one as it is."""
    if (folder / "tq_config.json").exists():
        return tq3.load(folder, device=device, dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)


def compile_forward(model: PreTrainedModel) -> None:
    """As Transformers' guide has it: a cache of fixed size, CUDA graphs where there is a GPU."""
    model.generation_config.cache_implementation = "static"
    mode = "reduce-overhead" if model.device.type == "cuda" else None
    model.forward = torch.compile(model.forward, mode=mode, fullgraph=True)


def generate(folder: Path, model: PreTrainedModel, prompt: str, tokens: int) -> tuple[str, Clock]:
    """The greedy continuation, without special tokens, and when its tokens came."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    clock = Clock()
    found = model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.eos_token_id,
        streamer=clock,
    )
    new = found[0, inputs.input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), clock


def weight_bytes(model: PreTrainedModel) -> int:
    """Of all parameters, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


if __name__ == "__main__":
    main()
