"""The interpreter's product of matrices against code that never heard of its fragments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda.emulated import call, compiled
from support.cuda.ptx.device import Device
from support.cuda.ptx.snippets import launch, place

from tq3.runtime.cuda import source
from tq3.runtime.cuda.calls import Call

# What stands before them is the text of a kernel, for its mma_m16n8k32.
# By the indices that the PTX manual prints for the fragments of m16n8k32; a is row by row, b column
# by column. The other kernel multiplies as a schoolbook does.
BY_TENSOR_CORE = """
extern "C" __global__ void by_tensor_core(const signed char* a, const signed char* b, int* sums) {
    const int group = threadIdx.x >> 2, in_group = threadIdx.x % 4;
    signed char of_a[16], of_b[8];
    for (int i = 0; i < 16; ++i) {
        const int row = i < 4 || (8 <= i && i < 12) ? group : group + 8;
        const int column = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);
        of_a[i] = a[row * 32 + column];
    }
    for (int i = 0; i < 8; ++i)
        of_b[i] = b[group * 32 + in_group * 4 + (i & 3) + (i < 4 ? 0 : 16)];
    unsigned words_of_a[4] = {}, words_of_b[2] = {};
    for (int i = 0; i < 16; ++i) words_of_a[i / 4] |= (of_a[i] & 255u) << i % 4 * 8;
    for (int i = 0; i < 8; ++i) words_of_b[i / 4] |= (of_b[i] & 255u) << i % 4 * 8;
    int of_sums[4];
    for (int i = 0; i < 4; ++i)
        of_sums[i] = sums[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    mma_m16n8k32(of_sums, words_of_a, words_of_b);
    for (int i = 0; i < 4; ++i)
        sums[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = of_sums[i];
}
"""
BY_LOOPS = """
extern "C" __global__ void by_loops(const signed char* a, const signed char* b, int* sums) {
    for (int i = threadIdx.x; i < 16 * 8; i += blockDim.x)
        for (int k = 0; k < 32; ++k) sums[i] += a[i / 8 * 32 + k] * b[i % 8 * 32 + k];
}
"""
KERNELS = {"by_tensor_core": BY_TENSOR_CORE, "by_loops": BY_LOOPS}


def problem():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-128, 128, (n, 32), np.int8)) for n in (16, 8))
    sums = torch.from_numpy(rng.integers(-(2**31), 2**31, (16, 8), np.int64).astype(np.int32))
    return a, b, sums


@pytest.mark.parametrize("architecture", ["sm_80", "sm_120"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tensor_core_multiplies_as_a_loop_does(kernel, architecture, monkeypatch):
    text = source.kernel("multiply") + KERNELS[kernel]
    monkeypatch.setattr(source, "kernel", lambda _: text)
    a, b, sums = problem()
    expected = sums + (a.int() @ b.int().T)
    Device(architecture).launch(Call(kernel, kernel, (1, 1, 1), 32, (a, b, sums)))
    assert torch.equal(sums, expected)


def test_a_tensor_core_multiplies_as_the_emulated_one_does(tmp_path):
    emulated = compiled("primitives_host.cpp", tmp_path)
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**32, (10, 64), np.uint64).astype(np.uint32)
    a, b, sums = words[:4], words[4:6], words[6:]
    found = sums.copy()
    text = "shr.u32 %r1, %r0, 5;" + place("%rd5", "%rd0", 4) + place("%rd6", "%rd1", 4)
    text += place("%rd7", "%rd2", 4)
    text += "".join(f"ld.global.u32 %r{10 + i}, [%rd5+{256 * i}];" for i in range(4))
    text += "".join(f"ld.global.u32 %r{14 + i}, [%rd6+{256 * i}];" for i in range(2))
    text += "".join(f"ld.global.u32 %r{16 + i}, [%rd7+{256 * i}];" for i in range(4))
    text += """mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r20, %r21, %r22, %r23},
        {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r16, %r17, %r18, %r19};"""
    text += "".join(f"st.global.u32 [%rd7+{256 * i}], %r{20 + i};" for i in range(4))
    launch(text, a.copy(), b.copy(), found, threads=64)
    for warp in (slice(0, 32), slice(32, 64)):
        left, right, expected = (
            torch.from_numpy(each[:, warp].T.copy().view(np.int32)) for each in (a, b, sums)
        )
        assert call(emulated.multiplied, 0, expected, left, right) == ""
        np.testing.assert_array_equal(found[:, warp].T.view(np.int32), expected.numpy())
