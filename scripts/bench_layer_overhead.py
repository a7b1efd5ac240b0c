"""Time what a packed layer costs beside its kernel: the module's call, torch's dispatch, checks.

One thread, its own processor time, medians of interleaved rounds: us of the compiled function
alone, of the operator, of the module; of three modules that read one input, as q, k and v do; and
of one token of a model, if its folder is given.

    python scripts/bench_layer_overhead.py --model build/smollm2-tq3
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from bench_runtime import machine

from tq3.format.layout import GroupLayout
from tq3.runtime import cpu, native
from tq3.runtime.modules import PackedLinear, PackedWeight

SHAPES = "576x576,192x576,1536x576,576x1536"
CALLS = 30
BITS, GROUP = 3, 128
Task = Callable[[], object]


def make_layer(rows: int, columns: int) -> PackedLinear:
    """Random codes and norms; the time does not depend on them."""
    weight = PackedWeight(GroupLayout((rows, columns), BITS, GROUP))
    weight.tq_packed.data.random_(0, 256)
    weight.tq_norms.data.uniform_()
    return PackedLinear(weight)


def medians(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Microseconds of processor time of each task, which take turns of CALLS calls."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            start = time.thread_time()
            for _ in range(CALLS):
                task()
            found[name].append((time.thread_time() - start) / CALLS * 1e6)
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


def bench_token(folder: str, rounds: int) -> None:
    """Print the time of one token after sixteen."""
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: PLC0415  only for models

    import tq3.integrations.transformers  # noqa: F401, PLC0415  registers the quantiser

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(5, 22)[None]
    cache = DynamicCache(config=model.config)
    model(ids[:, :16], past_key_values=cache)

    def one() -> None:
        model(ids[:, 16:], past_key_values=cache)
        cache.crop(-1)

    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        one()
        seconds.append(time.thread_time() - start)
    count = sum(isinstance(module, PackedLinear) for module in model.modules())
    print(f"{folder}: {statistics.median(seconds) * 1e3:.1f} ms a token, {count} packed layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default=SHAPES, help="rows x columns, several with commas")
    parser.add_argument("--model", help="folder of a packed causal model")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, torch {torch.__version__}, kernels {native.get_kernels().name}; us")
    with torch.no_grad():
        bench_layers(options.shapes, options.rounds)
        if options.model:
            bench_token(options.model, options.rounds)


if __name__ == "__main__":
    main()
