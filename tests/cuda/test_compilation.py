"""NVIDIA's compiler takes the kernels for every architecture; it needs no GPU."""

from __future__ import annotations

import pytest
from emulated import instances

from tq3.runtime.cuda import source

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
KERNELS = ("rotate_quantise", "multiply", "rotate", "decode")


def answer(result):
    error, *values = result
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    return values[0] if values else None


def compile_log(program, options):
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * answer(nvrtc.nvrtcGetProgramLogSize(program))
    answer(nvrtc.nvrtcGetProgramLog(program, log))
    return status, log.decode().strip("\0 \n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_a_warning(name, architecture):
    text = source.kernel(name).encode()
    program = answer(nvrtc.nvrtcCreateProgram(text, f"{name}.cu".encode(), 0, [], []))
    for instance in instances(name):
        answer(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
    # 177: a constant that another kernel needs.
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--diag-suppress=177"]
    options = [option.encode() for option in options]
    status, log = compile_log(program, options)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log
    assert log == ""
    assert answer(nvrtc.nvrtcGetCUBINSize(program)) > 0
