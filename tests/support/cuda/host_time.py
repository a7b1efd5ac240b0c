"""What a GPU's host does for a layer, in microseconds: the package's Device, and a stand-in for the
driver's library that executes nothing.

torch's own questions to CUDA (stream, current device) are answered by made-up functions here, so on
a machine with a GPU it takes a little more.

    PYTHONPATH=.:tests python -m support.cuda.host_time
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from support.cuda import through_driver
from support.runtime.modules import filled
from tq3.format.layout import GroupLayout
from tq3.runtime.cuda import support
from tq3.runtime.modules import PackedLinear, PackedWeight, note_siblings

CALLS, ROUNDS = 200, 15


def median(task: Callable[[], object]) -> float:
    """Of the processor time of one call."""
    found = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(CALLS):
            task()
        found.append((time.thread_time() - start) / CALLS * 1e6)
    return statistics.median(found)


@torch.no_grad()
def measure() -> None:
    """Print a line for one layer, and one for three that read one input."""
    device = through_driver.device(processors=132, architecture="sm_90")
    quiet = device.__class__.__base__(0, "sm_90")
    support.launcher = lambda device: quiet
    layout = GroupLayout((8448, 512), 3, 128)
    weights = [filled(PackedWeight(layout, dtype=torch.bfloat16)) for _ in range(3)]
    layers = nn.ModuleList(map(PackedLinear, weights))
    note_siblings(layers)
    for weight in weights:
        weight.arrange()
    turn = itertools.cycle([torch.randn(1, 1, 512, dtype=torch.bfloat16) for _ in range(8)])
    parts = weights[0].tq_packed, weights[0].tq_norms

    def read_by_all() -> None:
        x = next(turn)
        for layer in layers:
            layer(x)

    operator = torch.ops.tq3.linear_tiled
    print(f"operator        {median(lambda: operator(next(turn), *parts, 8448, 128)):6.1f}")
    print(f"module          {median(lambda: layers[0](next(turn))):6.1f}")
    print(f"3 of one input  {median(read_by_all):6.1f}", flush=True)
    os._exit(0)  # what the device would print at the end is of no interest


def main() -> None:
    if "LD_LIBRARY_PATH" in os.environ:
        return measure()
    with tempfile.TemporaryDirectory() as folder:
        library = through_driver.stand_in(Path(folder))
        environment = os.environ | {"LD_LIBRARY_PATH": str(library), "XDG_CACHE_HOME": folder}
        os.spawnve(os.P_WAIT, sys.executable, [sys.executable, __file__], environment)


if __name__ == "__main__":
    main()
