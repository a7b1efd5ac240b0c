"""Whether the kernels run on a device, and if not, why: said once."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from tq3.runtime.cuda.calls import Launcher
from tq3.runtime.warning import warn

_INSTEAD = "packed layers on this device are decoded at each use, which is slow"


def launcher(device: torch.device) -> Launcher | None:
    """Where kernels for tensors of `device` run; None, after one warning, where none do."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return _launcher(index)


@cache
def _launcher(index: int) -> Launcher | None:
    try:
        return _device(index)
    except Unsupported as reason:
        warn(f"{reason}; {_INSTEAD}")
        return None


class Unsupported(Exception):
    """Why kernels do not run on a device, as a sentence."""


def _device(index: int) -> Launcher:
    if torch.version.hip:
        raise Unsupported("tq3's kernels are for NVIDIA's GPUs")
    try:
        from tq3.runtime.cuda import compiler, device  # noqa: PLC0415  cuda-bindings may be missing
    except ImportError as error:
        raise Unsupported(
            f"tq3's kernels need the package {error.name}, which CUDA builds of torch bring: "
            "pip install 'tq3[cuda]'"
        ) from None
    try:
        return _checked(index, compiler, device)
    except RuntimeError as error:  # of NVRTC or the driver: not there, or of another version
        raise Unsupported(f"tq3's kernels can't be used: {error}") from None


def _checked(index: int, compiler: ModuleType, device: ModuleType) -> Launcher:
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    if capability < compiler.LEAST_CAPABILITY:
        raise Unsupported(
            f"tq3's kernels need compute capability {_text(compiler.LEAST_CAPABILITY)} (Ampere), "
            f"and {name} has {_text(capability)}"
        )
    architecture = compiler.architecture_for(capability)
    if architecture is None:
        raise Unsupported(
            f"NVRTC {_text(compiler.version())} does not know {name} of compute capability "
            f"{_text(capability)}: install a newer nvidia-cuda-nvrtc"
        )
    found: Launcher = device.Device(index, architecture)
    # Not in the first forward: what goes wrong here leaves another way.
    found.load("rotate_quantise", "rotate_quantise<Dtype::kBF16, 128, 128>")
    return found


def _text(pair: tuple[int, int]) -> str:
    return ".".join(map(str, pair))
