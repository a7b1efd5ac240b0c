"""A GPU as a place where kernels run: loaded once, launched on torch's current stream."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from cuda.bindings import driver

from tq3.runtime.cuda import compiler
from tq3.runtime.cuda.calls import Call
from tq3.runtime.cuda.crossings import crossing_of


class Device:
    """The CUDA device `index`. architecture: what its kernels are compiled for."""

    def __init__(self, index: int, architecture: str) -> None:
        self.index, self.architecture = index, architecture
        self.processors = torch.cuda.get_device_properties(index).multi_processor_count
        self.crossing = crossing_of(architecture)
        self._kernels: dict[tuple[str, str], Any] = {}

    def load(self, kernel: str, instance: str) -> Any:
        """The handle of an instance, which is compiled when it is new: never while a CUDA graph is
        being captured, which therefore needs an earlier call.
        """
        key = kernel, instance
        if key not in self._kernels:
            code = compiler.compiled(kernel, instance, self.architecture)
            with torch.cuda.device(self.index):
                library = _answer(driver.cuLibraryLoadData(code.cubin, [], [], 0, [], [], 0))
                self._kernels[key] = _answer(
                    driver.cuLibraryGetKernel(library, code.function.encode())
                )
        return self._kernels[key]

    def _enter(self) -> None:
        """Make torch's context current in a thread in which nothing has needed one yet."""
        if not int(_answer(driver.cuCtxGetCurrent())):
            context = _answer(driver.cuDevicePrimaryCtxRetain(driver.CUdevice(self.index)))
            _answer(driver.cuCtxSetCurrent(context))

    def launch(self, call: Call) -> None:
        """Queue the call; its tensors may be freed at once, as torch's allocator is in order."""
        handle = self.load(call.kernel, call.instance)
        self._enter()
        values, kinds = zip(*map(_argument, call.arguments), strict=True)
        stream = torch.cuda.current_stream(self.index).cuda_stream
        with torch.cuda.device(self.index):
            _answer(
                driver.cuLaunchKernel(
                    driver.CUfunction(int(handle)),
                    *call.grid,
                    *(call.threads, 1, 1),
                    0,
                    stream,
                    (values, kinds),
                    0,
                )
            )


def _argument(argument: torch.Tensor | int | float | None) -> tuple[int | float, Any]:
    """What the driver gets, and its type in C."""
    if argument is None:
        return 0, ctypes.c_void_p
    if isinstance(argument, torch.Tensor):  # a weight is of a class of its own, nn.Parameter
        return argument.data_ptr(), ctypes.c_void_p
    return argument, ctypes.c_float if isinstance(argument, float) else ctypes.c_int


def _answer(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA: {error.name}")
    return values[0] if values else None
