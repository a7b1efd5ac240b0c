"""Time what a packed layer costs beside its kernel: the module's call, torch's dispatch, checks.

One thread, its own processor time, medians of interleaved rounds: us of the compiled function
alone, of the operator, of the module; of three modules that read one input, as q, k and v do; and
of one token of models, packed or dense, if their folders are given, by kind of work.

    python scripts/bench_layer_overhead.py --models build/smollm2-tq3 build/smollm2
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_runtime import machine
from torch import nn

from tq3.format.layout import GroupLayout
from tq3.runtime import cpu, native
from tq3.runtime.modules import PackedLinear, PackedWeight
from tq3.runtime.threads import team

SHAPES = "576x576,192x576,1536x576,576x1536"
CALLS = 30
BITS, GROUP = 3, 128
Task = Callable[[], object]
Call = tuple[Any, torch.Tensor, torch.Tensor]  # a module, its input, its output


def make_layer(rows: int, columns: int) -> PackedLinear:
    """Random codes and norms; the time does not depend on them."""
    weight = PackedWeight(GroupLayout((rows, columns), BITS, GROUP))
    weight.tq_packed.data.random_(0, 256)
    weight.tq_norms.data.uniform_()
    return PackedLinear(weight)


def medians(tasks: dict[str, Task], rounds: int, calls: int = CALLS) -> dict[str, float]:
    """Microseconds of processor time of each task, which take turns of so many calls."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            start = time.thread_time()
            for _ in range(calls):
                task()
            found[name].append((time.thread_time() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in found.items()}


def tasks_for(rows: int, columns: int) -> dict[str, Task]:
    """Each call has another input, as in a model: only the siblings share theirs."""
    layer, siblings = make_layer(rows, columns), [make_layer(rows, columns) for _ in range(3)]
    inputs = [torch.randn(1, columns, dtype=torch.bfloat16) for _ in range(8)]
    turn = itertools.cycle(inputs)
    parts = layer.weight.tq_packed, layer.weight.tq_norms
    out = torch.empty(1, rows, dtype=torch.bfloat16)
    kernels = native.get_kernels()
    width = BITS, GROUP, GROUP

    def read_by_all() -> None:
        x = next(turn)
        for each in siblings:
            each(x)

    return {
        "kernel": lambda: kernels.linear(next(turn), *parts, *width, out),
        "cpu.linear": lambda: cpu.linear(next(turn), *parts, *width),
        "operator": lambda: torch.ops.tq3.linear(next(turn), *parts, BITS, GROUP),
        "module": lambda: layer(next(turn)),
        "3 of one input": read_by_all,
    }


def bench_layers(shapes: str, rounds: int) -> None:
    """Print a line for each shape."""
    for shape in shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        times = medians(tasks_for(rows, columns), rounds)
        print(f"{shape:10}", *(f"{name} {us:6.1f}" for name, us in times.items()), sep="  ")


def bench_token(folder: str, dtype: torch.dtype, rounds: int) -> None:
    """Print what one token after sixteen takes, by kind.

    "host alone" is a token of a model whose linear layers answer at once, with what they had
    answered before: what no packed layer can save.
    """
    model, token = one_token(folder, dtype)
    *layers, head = calls = linear_calls(model, token)
    host, token_of_host = one_token(folder, dtype)
    answer_at_once(host, linear_calls(host, token_of_host))
    tasks = {
        "token": token,
        "linear layers": modules_of(layers),
        "head": modules_of([head]),
        "host alone": token_of_host,
    }
    if all(isinstance(module, PackedLinear) for module, _, _ in layers):
        tasks["kernels of the layers"] = kernels_of(layers, 1)
        tasks["each of these twice"] = kernels_of(layers, 2)
    print(f"\n{folder}, {dtype}, {len(calls)} linear layers, one token, ms:")
    for name, us in medians(tasks, rounds, calls=1).items():
        print(f"  {name:22} {us / 1e3:7.2f}")


def one_token(folder: str, dtype: torch.dtype) -> tuple[nn.Module, Task]:
    """A model, and what makes it read the same token again."""
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: PLC0415  only for models

    import tq3.integrations.transformers  # noqa: F401, PLC0415  registers the quantiser

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.arange(5, 22)[None]
    cache = DynamicCache(config=model.config)
    model(ids[:, :16], past_key_values=cache)

    def token() -> None:
        model(ids[:, 16:], past_key_values=cache)
        cache.crop(-1)

    return model, token


def linear_calls(model: nn.Module, token: Task) -> list[Call]:
    """Linear layers with their inputs and outputs, in the order in which a token meets them."""
    calls: list[Call] = []
    modules = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [
        module.register_forward_hook(lambda module, x, y: calls.append((module, *x, y)))
        for module in modules
    ]
    token()
    for hook in hooks:
        hook.remove()
    return calls


def answer_at_once(model: nn.Module, calls: list[Call]) -> None:
    names = {module: name for name, module in model.named_modules()}
    for module, _, y in calls:
        model.set_submodule(names[module], Known(y))


class Known(nn.Module):
    """Always the same answer."""

    def __init__(self, y: torch.Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.y


def modules_of(calls: list[Call]) -> Task:
    def call_all() -> None:
        for module, x, _ in calls:
            module(x)

    return call_all


def kernels_of(calls: list[Call], times: int) -> Task:
    """The compiled function, for the second of two equal calls with an input quantised already."""
    kernels = native.get_kernels()
    tasks = []
    for module, x, y in calls:
        weight, layout = module.weight, module.weight.group_layout
        bound = kernels.bound(layout.bits, layout.group, layout.group)
        sizes = x.numel() // layout.cols, layout.cols, native.NUMBERS[x.dtype]
        places = weight.tq_packed.data_ptr(), weight.tq_norms.data_ptr()
        arguments = x.data_ptr(), *sizes, *places, *weight.tq_norms.shape, y.data_ptr()
        tasks += [partial(bound, team(), *arguments)] * times

    def call_all() -> None:
        for task in tasks:
            task()

    return call_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default=SHAPES, help="rows x columns, several with commas")
    parser.add_argument("--models", nargs="+", default=(), help="folders of causal models")
    parser.add_argument("--float32", action="store_true", help="models in float32, not bfloat16")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, torch {torch.__version__}, kernels {native.get_kernels().name}; us")
    with torch.no_grad():
        bench_layers(options.shapes, options.rounds)
    dtype = torch.float32 if options.float32 else torch.bfloat16
    with torch.inference_mode():
        for folder in options.models:
            bench_token(folder, dtype, options.rounds)


if __name__ == "__main__":
    main()
