"""A device that runs the PTX of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch

from support.cuda.ptx.machine import run
from support.cuda.ptx.memory import Global, Traffic
from support.cuda.ptx.parsing import Kernel, parse
from support.cuda.ptx.shared import Conflicts
from tq3.runtime.cuda import compiler
from tq3.runtime.cuda.calls import Call

# Below it the launch of a kernel waits until those ahead have ended.
EARLY_FROM = 90
# Of shared memory in a multiprocessor of sm_90.
SHARED_BYTES = 228 << 10
_TYPES = {torch.Tensor: "u64", type(None): "u64", int: "u32", float: "f32"}


@cache
def _compiled(kernel: str, instance: str, architecture: str) -> Kernel:
    return parse(compiler.intermediate(kernel, instance, architecture))


class Device:
    """Launches calls on the processor, as the PTX that NVRTC makes for `architecture`.

    text: gives the PTX of a kernel and an instance instead
    traffic: of the last call of each kernel by its name, for each argument that is a tensor, by
    "ld" and "st"; conflicts: in its shared memory
    """

    def __init__(
        self,
        architecture: str = "sm_80",
        text: Callable[[str, str], str] | None = None,
        processors: int = 1,
        shared_bytes: int = SHARED_BYTES,
    ) -> None:
        self.architecture, self._text, self.processors = architecture, text, processors
        self.shared_bytes = shared_bytes
        self.traffic: dict[str, list[dict[str, Traffic]]] = {}
        self.conflicts: dict[str, Conflicts] = {}

    def launch(self, call: Call) -> None:
        """Run a call; what it wrote is in its tensors."""
        tensors = [each for each in call.arguments if isinstance(each, torch.Tensor)]
        memory = Global([_bytes(tensor) for tensor in tensors])
        places = iter(range(len(tensors)))
        parameters = [(_TYPES[type(each)], _bits(each, memory, places)) for each in call.arguments]
        kernel, grid = self._load(call), call.grid
        name = call.instance.split("<", maxsplit=1)[0]
        early = call.early and int(self.architecture[3:]) >= EARLY_FROM
        self.conflicts[name] = run(
            kernel, memory, parameters, grid, call.threads, early, call.shared_bytes
        )
        self.traffic[name] = memory.traffic
        for i, tensor in enumerate(tensors):
            _bytes(tensor)[:] = memory.content(i)

    def _load(self, call: Call) -> Kernel:
        if self._text:
            return parse(self._text(call.kernel, call.instance))
        return _compiled(call.kernel, call.instance, self.architecture)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """A view of a tensor's memory."""
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8).numpy()


def _bits(
    argument: torch.Tensor | int | float | None, memory: Global, places: Iterator[int]
) -> int:
    if isinstance(argument, torch.Tensor):
        return memory.address(next(places))
    if argument is None:
        return 0
    if isinstance(argument, float):
        return int(np.float32(argument).view(np.uint32))
    return argument & 0xFFFFFFFF
