"""A launch as the driver gets it: the driver's library is a stand-in that says what it is given."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

# torch has no GPU here: what device.py asks it for is made up.
RUN = """
import contextlib, types, torch
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.current_stream = lambda index: types.SimpleNamespace(cuda_stream=0x77)
torch.cuda.get_device_properties = lambda index: types.SimpleNamespace(multi_processor_count=3)
from tq3.runtime.cuda.calls import Call
from tq3.runtime.cuda.device import Device
x = {tensor}
print(hex(x.data_ptr()), flush=True)
device = Device(0, "sm_80")
assert device.processors == 3
for grid in ((5, 6, 7), (1, 1, 1)):
    device.launch(Call("split", "add_terms<Dtype::kF32>", grid, 256, (x, -2, 1.5, None)))
"""


# What modules give: activations, and weights, which are parameters.
TENSORS = {
    "a tensor": "torch.zeros(4)",
    "a parameter": "torch.nn.Parameter(torch.zeros(4, dtype=torch.int32), requires_grad=False)",
    "norms": "__import__('tq3.runtime.weight').runtime.weight.Norms(torch.zeros(4))",
}


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A folder with the stand-in."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    source, library = Path(__file__).with_name("driver.cpp"), tmp_path / "libcuda.so.1"
    options = ("-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1")
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    return tmp_path


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_driver_gets_code_grid_stream_and_arguments(driver, tensor):
    environment = {
        "LD_LIBRARY_PATH": str(driver),
        "SIZES": "8,4,4,8",
        "XDG_CACHE_HOME": str(driver / "cache"),
    }
    run = subprocess.run(
        [sys.executable, "-c", RUN.replace("{tensor}", tensor)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    address, load, kernel, context, *launches = run.stdout.splitlines()
    assert load == "load ELF"
    assert kernel.startswith("kernel ")
    assert "add_terms" in kernel
    assert context == "context of 0"
    expected = [
        part.hex()
        for part in (
            struct.pack("<Q", int(address, 16)),
            struct.pack("<i", -2),
            struct.pack("<f", 1.5),
            struct.pack("<Q", 0),
        )
    ]
    for grid, launch in (("5 6 7", launches[:5]), ("1 1 1", launches[5:])):
        where, *arguments = launch
        assert f"grid {grid} block 256 1 1 shared 0 stream 0x77" in where
        assert arguments == expected
