"""Views of stacks with rows and columns exchanged: any range of them, in any type."""

from __future__ import annotations

import numpy as np
import pytest
from support.dequantization.quantised import around, fp4
from support.factories import random_tensor, tiny_checkpoint

from tq3.dequantization import orientation
from tq3.dequantization.orientation import by_outputs, held_bytes, turned_like, with_host_views
from tq3.dequantization.source import open_original
from tq3.format.layout import GroupLayout
from tq3.storage.local import LocalFiles

NAME = "model.layers.0.mlp.experts.gate_up_proj"
CONFIG = {"model_type": "gpt_oss", "hidden_size": 7}
BLOCKS = fp4(NAME, (3, 130, 96), "_blocks", "_scales", "U8", "U8")
MXFP4 = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}


def stored(path, dtype="BF16", config=CONFIG):
    """A stack of [3, 7, 10] between two other tensors, and the source that has it."""
    tensors = {"a": random_tensor(5), NAME: random_tensor(3, 7, 10, dtype=dtype, seed=1)}
    folder = tiny_checkpoint(path, {**tensors, "z": random_tensor(5)}, config=config)
    return tensors[NAME], open_original(LocalFiles(folder))


def tensor_of(checkpoint):
    return next(each for each in checkpoint.tensors if each.info.name == NAME)


def read(files, tensor, first, count):
    """Elements `first` to `first + count` of a tensor, in raw bytes."""
    width = tensor.info.n_bytes // tensor.info.n_elements
    return files.read(tensor.file, tensor.offset + first * width, count * width)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_any_range_of_a_turned_stack_is_that_of_the_transposed_values(tmp_path, dtype):
    one, (files, checkpoint) = stored(tmp_path, dtype)
    files, checkpoint = by_outputs(files, checkpoint, {NAME})
    turned = tensor_of(checkpoint)
    assert turned.info.shape == (3, 10, 7) and turned.transposed
    words = one.words.reshape(3, 7, 10).transpose(0, 2, 1).reshape(-1)
    for first in range(0, 210, 3):
        for count in (1, 6, 7, 8, 71, 210):
            part = words[first : first + count]
            assert read(files, turned, first, len(part)) == part.tobytes()
    last = checkpoint.tensors[-1]
    assert read(files, last, 0, 5) == random_tensor(5).data


def test_what_hosts_have_of_a_turned_stack_is_what_the_file_has(tmp_path):
    one, (files, checkpoint) = stored(tmp_path)
    files, checkpoint = by_outputs(files, checkpoint, {NAME})
    of_host = tensor_of(checkpoint).of_host
    assert of_host.info.shape == (3, 7, 10) and not of_host.transposed
    assert of_host.of_host is of_host
    assert read(with_host_views(files, checkpoint), of_host, 0, 210) == one.data


def test_blocks_of_gpt_oss_are_transposed_for_hosts(tmp_path):
    folder = tiny_checkpoint(tmp_path, around([BLOCKS]), 3, MXFP4)
    files, checkpoint = open_original(LocalFiles(folder))
    tensor = tensor_of(checkpoint)
    assert tensor.transposed and tensor.info.shape == (3, 130, 96)
    of_host = tensor.of_host
    found = np.frombuffer(
        read(with_host_views(files, checkpoint), of_host, 0, of_host.info.n_elements), "<f4"
    )
    np.testing.assert_array_equal(found.reshape(3, 96, 130), BLOCKS.values.transpose(0, 2, 1))
    assert of_host.nominal.dtype == "BF16" and of_host.n_bytes == tensor.n_bytes


def test_a_source_is_turned_as_the_checkpoint_is_that_was_made_from_it(tmp_path):
    _, (files, checkpoint) = stored(tmp_path)
    usual, turned = (GroupLayout((3, 10, 7), 3, 128, transposed=is_so) for is_so in (False, True))
    assert turned_like([usual], files, checkpoint) == (files, checkpoint)
    _, found = turned_like([usual, turned], files, checkpoint)
    assert tensor_of(found).transposed


def test_each_matrix_is_read_once_and_two_of_them_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(orientation, "_KEPT_BYTES", 100)
    _, (files, checkpoint) = stored(tmp_path)
    turned_files, checkpoint = by_outputs(files, checkpoint, {NAME})
    seen, tensor = [], tensor_of(checkpoint)
    read_into = files.read_into

    def read_and_note(name, offset, buffer):
        seen.append(len(buffer))
        read_into(name, offset, buffer)

    monkeypatch.setattr(files, "read_into", read_and_note)
    for first in (0, 30, 69, 70, 100, 20, 140, 69, 70):
        read(turned_files, tensor, first, 1)
    assert seen == [140] * 4  # the third one pushed the second out, which is read again
    assert held_bytes([tensor]) == 280
    assert held_bytes(tensor.of_host for tensor in checkpoint.tensors[:1]) == 0
