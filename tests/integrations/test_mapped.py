"""Copies of tensors that lie in a mapped file, and memory that is given back."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tq3.integrations.transformers.mapped import Copied, MappedFiles

SHAPE = 3000, 1000


@pytest.fixture
def file(tmp_path):
    values = torch.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 2048
    save_file({"first": torch.ones(5), "w": values.to(torch.float16)}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def mapped(file):
    with safe_open(file, framework="pt", device="cpu") as opened:
        return opened.get_slice("w")[...]


def resident_bytes(tensor):
    """Of the mapping that the tensor lies in."""
    inside = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            first, _, last = line.split()[0].partition("-")
            if last:
                inside = int(first, 16) <= tensor.data_ptr() < int(last, 16)
            elif inside and first == "Rss:":
                return 1024 * int(line.split()[1])
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_copy_has_the_values_and_leaves_no_pages_of_the_file(file):
    tensor = mapped(file)
    expected = tensor.to(torch.bfloat16)
    assert resident_bytes(tensor) >= tensor.nbytes
    (copy,) = Copied(torch.bfloat16, MappedFiles([file])).convert({"w": [tensor]})["w"]
    assert copy.dtype == torch.bfloat16
    assert torch.equal(copy, expected)
    assert resident_bytes(tensor) < tensor.nbytes / 8
    assert torch.equal(tensor.to(torch.bfloat16), expected)  # read again


def test_memory_that_is_no_file_of_the_checkpoint_keeps_its_values(file):
    """Given back, memory of other kinds would be zero, and changed pages as they were."""
    anonymous, other = torch.full(SHAPE, 7.0), mapped(file)
    other += 1
    expected = other.clone()
    for files in (MappedFiles([]), MappedFiles([file + "x"])):
        files.let_go(anonymous)
        files.let_go(other)
        (copy,) = files.copied([other], torch.float32)
        assert torch.equal(copy, expected.float())
    MappedFiles([file]).let_go(anonymous)
    MappedFiles([file]).let_go(mapped(file))
    assert torch.equal(other, expected)
    assert bool((anonymous == 7).all())


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
def test_tensors_of_any_shape_are_copied(tmp_path, shape):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(shape, dtype=torch.float16)}, path)
    with safe_open(path, framework="pt", device="cpu") as opened:
        (copy,) = MappedFiles([str(path)]).copied([opened.get_tensor("w")], torch.float32)
    assert copy.shape == shape
    assert bool((copy == 1).all())
