"""NVIDIA's compiler takes the kernels for every architecture; it needs no GPU."""

from __future__ import annotations

import pytest
from instances import ARCHITECTURES, KERNELS, instances

from tq3.runtime.cuda import source

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")


def answer(result):
    error, *values = result
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    return values[0] if values else None


def compile_log(program, options):
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    # An empty log has one byte, and a bytes object of one byte is Python's own.
    log = bytes(answer(nvrtc.nvrtcGetProgramLogSize(program)) + 1)
    answer(nvrtc.nvrtcGetProgramLog(program, log))
    return status, log.decode().strip("\0 \n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_a_warning(name, architecture):
    text = source.kernel(name).encode()
    program = answer(nvrtc.nvrtcCreateProgram(text, f"{name}.cu".encode(), 0, [], []))
    # On the others test_limits.py compiles those of bfloat16 alone.
    few = [each for each in instances(name) if "kBF16" in each or "terms" in each]
    for instance in instances(name) if architecture in ("sm_80", "sm_120") else few[::4]:
        answer(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
    # 177: a constant that another kernel needs.
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--diag-suppress=177"]
    options = [option.encode() for option in options]
    status, log = compile_log(program, options)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log
    assert log == ""
    assert answer(nvrtc.nvrtcGetCUBINSize(program)) > 0
