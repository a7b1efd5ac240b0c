"""A GPU as a place where kernels run: loaded once, launched on torch's current stream."""

from __future__ import annotations

import ctypes
import threading
from functools import cached_property
from typing import Any

import torch
from cuda.bindings import driver

from tq3.runtime.constants import refuse_in_a_capture
from tq3.runtime.cuda import compiler
from tq3.runtime.cuda.calls import Call
from tq3.runtime.cuda.crossings import crossing_of

# The driver's version from which on it can be told to load a function, and from which on a CUDA
# graph keeps that a kernel may start early.
_HAS_FUNC_LOAD = 12040
_KEEPS_EARLY_STARTS = 12030
# Of a block, without which no leave of the driver is needed.
_SHARED_BYTES = 48 << 10
# From this architecture on kernels wait themselves for those ahead (instructions.cuh).
_WAITS_ITSELF = 90


class Device:
    """The CUDA device `index`. architecture: what its kernels are compiled for."""

    def __init__(self, index: int, architecture: str) -> None:
        self.index, self.architecture = index, architecture
        properties = torch.cuda.get_device_properties(index)
        self.processors = properties.multi_processor_count
        self.shared_bytes = properties.shared_memory_per_multiprocessor
        self.crossing = crossing_of(architecture)
        self._kernels: dict[tuple[str, str], Any] = {}
        self._may_share: dict[str, int] = {}
        self._early = _EarlyLaunch()

    @cached_property
    def _starts_early(self) -> bool:
        architecture = int(self.architecture.removeprefix("sm_"))
        version = _answer(driver.cuDriverGetVersion())
        return architecture >= _WAITS_ITSELF and version >= _KEEPS_EARLY_STARTS

    def load(self, kernel: str, instance: str) -> Any:
        """The handle of an instance, which is compiled when it is new, and brought to the device.

        Raises UsageError for a new one while a CUDA graph is captured.
        """
        key = kernel, instance
        if key not in self._kernels:
            with torch.cuda.device(self.index):
                refuse_in_a_capture(instance)
                code = compiler.compiled(kernel, instance, self.architecture)
                self._enter()
                self._kernels[key] = _loaded(code)
        return self._kernels[key]

    def _enter(self) -> None:
        """Make torch's context current in a thread in which nothing has needed one yet.

        Inside of torch.cuda.device, which gives the thread back the device that it had.
        """
        if not int(_answer(driver.cuCtxGetCurrent())):
            context = _answer(driver.cuDevicePrimaryCtxRetain(driver.CUdevice(self.index)))
            _answer(driver.cuCtxSetCurrent(context))

    def sequence(self) -> tuple[int, int]:
        """torch's current stream, and the number of the capture that makes a CUDA graph of what it
        is given; 0 for none.
        """
        stream: int = torch.cuda.current_stream(self.index).cuda_stream
        if not torch.cuda.is_current_stream_capturing():
            return stream, 0
        status, _, number, *_ = driver.cuStreamGetCaptureInfo(stream)
        _answer((status,))
        return stream, int(number)

    def launch(self, call: Call) -> None:
        """Queue the call; its tensors may be freed at once, as torch's allocator is in order."""
        function = self.load(call.kernel, call.instance)
        values, kinds = zip(*map(_argument, call.arguments), strict=True)
        stream = torch.cuda.current_stream(self.index).cuda_stream
        block = call.threads, 1, 1
        with torch.cuda.device(self.index):
            self._enter()
            self._allow(call, function)
            if call.early and self._starts_early:
                config = self._early.of(call, stream)
                _answer(driver.cuLaunchKernelEx(config, function, (values, kinds), 0))
            else:
                _answer(
                    driver.cuLaunchKernel(
                        function,
                        *call.grid,
                        *block,
                        call.shared_bytes,
                        stream,
                        (values, kinds),
                        0,
                    )
                )

    def _allow(self, call: Call, function: Any) -> None:
        """Let the function have as much shared memory as the call needs. No work of a stream, so
        a capture may be under way.
        """
        if call.shared_bytes > self._may_share.get(call.instance, _SHARED_BYTES):
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _answer(driver.cuFuncSetAttribute(function, most, call.shared_bytes))
            self._may_share[call.instance] = call.shared_bytes


class _EarlyLaunch(threading.local):
    """Launches of kernels that may start before the one ahead in the stream has ended: of each
    thread, since the driver reads it while others run; made once, as that takes microseconds.
    """

    def __init__(self) -> None:
        attribute, self._config = driver.CUlaunchAttribute(), driver.CUlaunchConfig()
        attribute.id = (
            driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        )
        attribute.value.programmaticStreamSerializationAllowed = 1
        self._config.attrs, self._config.numAttrs = [attribute], 1
        self._config.blockDimY = self._config.blockDimZ = 1

    def of(self, call: Call, stream: int) -> driver.CUlaunchConfig:
        config = self._config
        config.gridDimX, config.gridDimY, config.gridDimZ = call.grid
        config.blockDimX, config.hStream = call.threads, stream
        config.sharedMemBytes = call.shared_bytes
        return config


def _loaded(code: compiler.Code) -> Any:
    """The function in the current context, its code on the device: a driver that loads lazily would
    do so at the first launch, which may be captured.
    """
    library = _answer(driver.cuLibraryLoadData(code.cubin, [], [], 0, [], [], 0))
    kernel = _answer(driver.cuLibraryGetKernel(library, code.function.encode()))
    function = _answer(driver.cuKernelGetFunction(kernel))
    if _answer(driver.cuDriverGetVersion()) >= _HAS_FUNC_LOAD:
        _answer(driver.cuFuncLoad(function))
    return function


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
