"""Time tq3 beside llama.cpp and torch on one thread: one layer, or the decoding of one token.

llama.cpp comes from the package xllamacpp, whose library is called directly for one layer, and
through its server for a model. What is measured takes turns in one process, in processor time of
all its threads, of which there is one; printed are medians in milliseconds.

    pip install --no-deps xllamacpp
    python scripts/bench_peers.py layers --tokens 1,8,32,128
    python scripts/bench_peers.py model GGUF PACKED_FOLDER ...
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xllamacpp
from bench_runtime import Layer, machine, make_layers
from transformers import AutoModelForCausalLM, AutoTokenizer

import tq3.integrations.transformers  # noqa: F401  registers the format
from tq3.runtime import native

Task = Callable[[], object]
# Of enum ggml_type.
FLOAT32 = 0
GGML_TYPES = {"Q4_0": 2, "Q3_K": 11, "Q4_K": 12}
REPACKED = ("Q4_0", "Q4_K")
CALLS = 2
GROUP = 128
PROMPT = "The capital of France is"
NEW_TOKENS = 32


class Pointer(ctypes.c_void_p):
    """An answer that stays a pointer: ctypes makes integers of its own."""


class Ggml:
    """llama.cpp's library of tensors, on one thread."""

    def __init__(self) -> None:
        folder = Path(xllamacpp.__file__).parent
        self._library = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
        self.backend = self("ggml_backend_cpu_init")
        self("ggml_backend_cpu_set_n_threads", self.backend, 1, result=None)
        self.plain = self("ggml_backend_cpu_buffer_type")
        self.repacked = self("_Z35ggml_backend_cpu_repack_buffer_typev")

    def __call__(self, name: str, *arguments: object, result: Any = Pointer) -> Any:
        function = self._library[name]
        function.restype = result
        return function(*arguments)

    def instructions(self) -> str:
        """Instruction sets that this build uses, best first."""
        names = ("amx_int8", "avx512_vnni", "avx512", "avx_vnni", "avx2")
        has = [name for name in names if self(f"ggml_cpu_has_{name}", result=ctypes.c_int)]
        return has[0] if has else "others"

    def context(self) -> Pointer:
        class Parameters(ctypes.Structure):
            _fields_ = (
                ("bytes", ctypes.c_size_t),
                ("memory", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool),
            )

        made: Pointer = self("ggml_init", Parameters(1 << 20, None, True))
        return made

    def tensor(self, context: Pointer, kind: int, columns: int, rows: int) -> Pointer:
        sizes = ctypes.c_int64(columns), ctypes.c_int64(rows)
        made: Pointer = self("ggml_new_tensor_2d", context, kind, *sizes)
        return made

    def fill(self, tensor: Pointer, values: np.ndarray) -> None:
        data = values.ctypes.data_as(ctypes.c_void_p)
        size = ctypes.c_size_t(values.nbytes)
        self("ggml_backend_tensor_set", tensor, data, ctypes.c_size_t(0), size)

    def quantised(self, kind: int, rows: int, columns: int) -> np.ndarray:
        """A weight of random numbers. Some rows are repeated, which changes no time."""
        some = min(rows, 64)
        values = np.random.default_rng(1).standard_normal((some, columns), np.float32)
        size = self("ggml_row_size", kind, ctypes.c_int64(columns), result=ctypes.c_size_t)
        to = np.empty((some, size), np.uint8)
        where = [array.ctypes.data_as(ctypes.c_void_p) for array in (values, to)]
        counts = [ctypes.c_int64(count) for count in (0, some, columns)]
        self("ggml_quantize_chunk", kind, *where, *counts, None, result=ctypes.c_size_t)
        return np.ascontiguousarray(np.tile(to, (-(-rows // some), 1))[:rows])

    def weight(self, name: str, buffers: Pointer, rows: int, columns: int) -> Pointer:
        context = self.context()
        weight = self.tensor(context, GGML_TYPES[name], columns, rows)
        if not self("ggml_backend_alloc_ctx_tensors_from_buft", context, buffers):
            raise MemoryError(name)
        self.fill(weight, self.quantised(GGML_TYPES[name], rows, columns))
        return weight

    def product(self, weight: Pointer, x: np.ndarray) -> Task:
        """A call that multiplies x, float32, by the weight."""
        context = self.context()
        activations = self.tensor(context, FLOAT32, x.shape[1], x.shape[0])
        out = self("ggml_mul_mat", context, weight, activations)
        graph = self("ggml_new_graph", context)
        self("ggml_build_forward_expand", graph, out, result=None)
        self("ggml_backend_alloc_ctx_tensors_from_buft", context, self.plain)
        self.fill(activations, x)
        return lambda: self("ggml_backend_graph_compute", self.backend, graph, result=ctypes.c_int)


def medians(tasks: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Each task gives seconds; the first round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            seconds[name].append(task())
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def timed(task: Task) -> Callable[[], float]:
    """The mean processor time of a call."""

    def seconds() -> float:
        start = time.process_time()
        for _ in range(CALLS):
            task()
        return (time.process_time() - start) / CALLS

    return seconds


def bench_layers(options: argparse.Namespace) -> None:
    ggml = Ggml()
    names = options.kernels.split(",") if options.kernels else native.available_kernels()[:-1]
    print(f"llama.cpp with {ggml.instructions()}, tq3 with {', '.join(names)}")
    for shape in options.shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        weights = {name: ggml.weight(name, ggml.plain, rows, columns) for name in GGML_TYPES}
        for name in REPACKED:
            weights[f"{name} repacked"] = ggml.weight(name, ggml.repacked, rows, columns)
        ours = {bits: our_layer(rows, columns, bits) for bits in (3, 4)}
        weight = torch.randn(rows, columns)
        dense = {"torch bf16": weight.bfloat16(), "torch f32": weight}
        for tokens in map(int, options.tokens.split(",")):
            x = torch.randn(tokens, columns)
            tasks = {name: ggml.product(weight, x.numpy()) for name, weight in weights.items()}
            for name, weight in dense.items():
                tasks[name] = multiply(x.to(weight.dtype), weight)
            for bits, kernel in itertools.product(ours, names):
                tasks[f"{kernel} {bits} bits"] = apply(kernel, x.bfloat16(), bits, ours[bits])
            report(shape, tokens, medians({n: timed(t) for n, t in tasks.items()}, options.rounds))


def our_layer(rows: int, columns: int, bits: int) -> Layer:
    """Codes and norms, random, once: llama.cpp's weights are there once, too."""
    return make_layers(rows, columns, bits, GROUP, 0)[0]


def multiply(x: torch.Tensor, weight: torch.Tensor) -> Task:
    return lambda: F.linear(x, weight)


def apply(
    kernel: str, x: torch.Tensor, bits: int, layer: tuple[torch.Tensor, torch.Tensor]
) -> Task:
    """Kernels keep what they quantised last, so inputs take turns."""
    kernels, out = native.get_kernels(kernel), x.new_empty(len(x), len(layer[1]))
    inputs = itertools.cycle((x, -x))
    return lambda: kernels.linear(next(inputs), *layer, bits, GROUP, GROUP, out)


def report(what: str, tokens: int, seconds: dict[str, float]) -> None:
    print(f"\n{what}, {tokens} tokens, ms:")
    for name, value in seconds.items():
        print(f"  {name:22} {value * 1e3:9.2f}", flush=True)


def bench_model(options: argparse.Namespace) -> None:
    """A token of a model in Transformers, packed, and of a GGUF in llama.cpp's server."""
    tasks = {"llama.cpp": llama_cpp(options.gguf)}
    for folder in options.folders:
        tasks[folder.name] = transformers(folder)
    report(f"one of {NEW_TOKENS} tokens", 1, medians(tasks, options.rounds))


def transformers(folder: Path) -> Callable[[], float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids

    def seconds() -> float:
        with torch.inference_mode():
            step = model(prompt, use_cache=True)
            start = time.process_time()
            for _ in range(NEW_TOKENS):
                token = step.logits[:, -1:].argmax(-1)
                step = model(token, past_key_values=step.past_key_values, use_cache=True)
            return (time.process_time() - start) / NEW_TOKENS

    return seconds


def llama_cpp(gguf: Path) -> Callable[[], float]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_ctx, parameters.n_parallel = 256, 1
    server = xllamacpp.Server(parameters)

    def generate(tokens: int) -> float:
        start = time.process_time()
        server.handle_completions(
            {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        )
        return time.process_time() - start

    # The prompt is the same work in both.
    return lambda: (generate(1 + NEW_TOKENS) - generate(1)) / NEW_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description="Time tq3 beside llama.cpp and torch.")
    commands = parser.add_subparsers(required=True)
    layers = commands.add_parser("layers", help="one layer")
    layers.add_argument("--shapes", default="17408x5120,5120x17408", help="rows x columns")
    layers.add_argument("--tokens", default="1,8,32,128")
    layers.add_argument("--kernels", help="of tq3, with commas; by default all but portable")
    layers.set_defaults(bench=bench_layers)
    model = commands.add_parser("model", help="one token of a small model")
    model.add_argument("gguf", type=Path, metavar="GGUF")
    model.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="packed or dense")
    model.set_defaults(bench=bench_model)
    for command in (layers, model):
        command.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, torch {torch.__version__}, one thread")
    with torch.inference_mode():
        options.bench(options)


if __name__ == "__main__":
    main()
