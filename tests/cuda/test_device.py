"""Calls of tensors, modules and whole models as the driver gets them, by a stand-in for it."""

from __future__ import annotations

import struct

import pytest
from support.cuda import through_driver

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the stand-in and of codes, which are compiled once."""
    return tmp_path_factory.mktemp("driver")


# What callers give: activations, and weights, which are parameters. In the end from another thread,
# which has no context yet and must keep the device that is current in it.
TENSORS = """
import contextlib, threading, torch
from tq3.runtime.cuda import device as module
from tq3.runtime.cuda.calls import Call
from tq3.runtime.weight import Norms
device = through_driver.device()
assert device.processors == 3
inside = []

@contextlib.contextmanager
def guard(index):
    inside.append(index)
    try:
        yield
    finally:
        inside.pop()

def entered(enter=device._enter):
    assert inside == [0], "a context that stays current"
    enter()

module.torch.cuda.device, device._enter = guard, entered
assert device.sequence() == (through_driver.STREAM, 0)
module.torch.cuda.is_current_stream_capturing = lambda: True
assert device.sequence() == (through_driver.STREAM, 3)
module.torch.cuda.is_current_stream_capturing = lambda: False
tensor = torch.zeros(4)
NUMBERS = -2, 15, 0, 7, 1 << 30

def launch(x, grid):
    device.launch(Call("split", "add_terms<Dtype::kF32>", grid, 256, (x, None, *NUMBERS)))

for x in (tensor, torch.nn.Parameter(tensor.int(), requires_grad=False), Norms(tensor)):
    print(x.data_ptr())
    launch(x, (5, 6, 7))
    thread = threading.Thread(target=launch, args=(x, (1, 1, 1)))
    thread.start()
    thread.join()

# What a driver refuses: no blocks, blocks of another size than the code's, a tensor out of line,
# and more shared memory than there is.
multiply = "multiply", "multiply<Dtype::kBF16, 3, 128>"
words = torch.zeros(16, dtype=torch.int32)[1:]
for of, grid, threads, arguments in (
    (("split", "add_terms<Dtype::kF32>"), (1, 0, 1), 256, (None, None, *NUMBERS)),
    (("split", "add_terms<Dtype::kF32>"), (1, 1, 1), 128, (None, None, *NUMBERS)),
    (multiply, (1, 1, 1), 256, (words, None, None, None, None, 1, 1, 1, None)),
    (multiply, (1, 1, 1), 256, (*[None] * 5, 1, 1, 1, None)),
):
    try:
        shared_bytes = 0 if arguments[0] is words or of != multiply else 228 << 10
        call = Call(*of, grid, threads, arguments, shared_bytes=shared_bytes)
        module.Device.launch(device, call)
    except RuntimeError as error:
        print(error)
"""
NUMBERS = -2, 15, 0, 7, 1 << 30
REFUSED = ["INVALID_VALUE", "INVALID_VALUE", "MISALIGNED_ADDRESS", "INVALID_VALUE"]


def test_the_driver_gets_code_grid_stream_and_arguments(folder):
    found = through_driver.run(TENSORS, folder)
    contexts = [line for line in found.others if line == "context of 0"]
    assert len(contexts) == 4  # of four threads
    kernel = next(line for line in found.others if "add_terms" in line)
    rest = [f"pointer {bytes(8).hex()}", *(f"int {struct.pack('<i', i).hex()}" for i in NUMBERS)]
    wanted = []
    assert found.printed[3:] == [f"CUDA: CUDA_ERROR_{error}" for error in REFUSED]
    for address in map(int, found.printed[:3]):
        first = f"pointer {struct.pack('<Q', address).hex()}"
        for grid in ("5 6 7", "1 1 1"):
            where = f"launch {kernel.removeprefix('kernel ')} grid {grid} block 256 1 1 shared 0"
            wanted.append([f"{where} stream 0x77", first, *rest])
    assert found.asked == wanted == found.given[:6]


MODULES = """
import contextlib, torch
from support.runtime.modules import filled, tiled
from support.runtime.layers import activations
from torch import nn
from tq3.format.layout import GroupLayout
from tq3.runtime.modules import (
    PackedExperts, PackedLinear, PackedRows, PackedWeight, look_up_packed)
device = through_driver.device(processors=20)

def layer(kind, *shape, **how):
    return filled(kind(GroupLayout(shape, 3, 128), dtype=torch.bfloat16, **how))

rows = layer(PackedRows, 700, 512)
head = PackedWeight(rows.group_layout, dtype=torch.bfloat16)
head.tq_packed, head.tq_norms = rows.tq_packed, rows.tq_norms
embedding = nn.Embedding(700, 512, device="meta")
look_up_packed(embedding, rows)
model = tiled(nn.ModuleDict({
    "embedding": embedding,
    "head": PackedLinear(head),
    "small": PackedLinear(layer(PackedWeight, 70, 2100), nn.Parameter(torch.ones(70))),
    "experts": layer(PackedExperts, 5, 40, 200),
    "stacked": layer(PackedExperts, 5, 40, 200, stacked=True),
}))
for mode in (torch.inference_mode, torch.no_grad, contextlib.nullcontext):
    with mode():
        for tokens in (1, 6, 1025):
            assert model["embedding"](torch.arange(tokens) % 500).shape == (tokens, 512)
            for name in ("head", "small"):
                linear = model[name]
                x = activations(tokens, linear.in_features, torch.bfloat16)
                assert linear(x).shape == (tokens, linear.out_features)
                assert linear(x.T.contiguous().T).shape == (tokens, linear.out_features)
            for name in ("experts", "stacked"):
                x = activations(tokens, 200, torch.bfloat16)
                assert model[name](x, torch.arange(tokens) % 5).shape == (tokens, 40)
"""
KERNELS = {
    *("rotate_quantise", "multiply", "multiply_shared", "multiply_terms", "add_terms"),
    *("rotate", "decode"),
}


def assert_launched_as_asked(found):
    """Grid, block, stream, and each argument's bytes and type, which are those of the code."""
    assert found.given == found.asked
    launched = {line.split()[1] for line, *_ in found.given}
    names = {name for name in KERNELS for each in launched if f"{len(name)}{name}I" in each}
    assert len(names) <= len(launched)
    return names


def test_all_modules_go_through_the_driver(folder):
    assert assert_launched_as_asked(through_driver.run(MODULES, folder)) == KERNELS


MODELS = """
import sys, torch, tq3
from pathlib import Path
from support.integrations.packed_models import load, logits
from support.models.tiny_models import ARCHITECTURES, write_checkpoint
from support.integrations.packed_models import load, logits
from support.models.tiny_models import BY_NAME, write_checkpoint
from tq3.runtime.modules import PackedEmbedding, PackedExperts
device = through_driver.device()
for name, kind in (("llama", PackedEmbedding), ("qwen3_moe", PackedExperts)):
    architecture = BY_NAME[name]
    folder = Path(sys.argv[-1]) / name
    write_checkpoint(architecture, folder / "source")
    tq3.compress(folder / "source", folder / "tq3", only=["*proj*", "*embed_tokens*"])
    model = load(architecture, folder / "tq3", torch.bfloat16)
    assert any(isinstance(module, kind) for module in model.modules())
    for tokens in (1, 12):
        logits(model, torch.arange(tokens)[None])
"""


def test_models_of_transformers_go_through_the_driver(folder):
    found = through_driver.run(MODELS.replace("sys.argv[-1]", repr(str(folder))), folder)
    assert {"rotate_quantise", "multiply"} <= assert_launched_as_asked(found)


EARLY = """
import torch
from support.runtime.layers import activations, layer
from tq3.runtime.cuda import calls, layout, many
device = through_driver.device(processors=1, architecture={architecture!r})
# 40 tokens with few multiprocessors: sums wait in more shared memory than every kernel may have.
for processors, tokens in ((1, 2), (100, 2), (1, 40)):
    device.processors = processors
    quantised = calls.quantise(device, activations(tokens, 2048), 16, 3, 128, 128)
    tiles = layout.repack(*layer(40, 16), 3, 128)
    calls.multiply(device, tiles, quantised, 40, 128, torch.float32)
many.rotate(device, activations(2, 2048), 16, 128, 128)
"""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_kernels_that_wait_themselves_may_start_early(tmp_path, architecture):
    found = through_driver.run(EARLY.format(architecture=architecture), tmp_path)
    names = assert_launched_as_asked(found)
    assert names == KERNELS - {"decode"}
    assert any(int(where.split()[11]) > 48 << 10 for where, *_ in found.given)
    early = {where.split()[1] for where, *_ in found.given if where.endswith(" early")}
    assert len(early) == (5 if architecture == "sm_90" else 0)
    assert not any("6rotateI" in name for name in early)
