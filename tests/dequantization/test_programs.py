"""Checkpoints as the programs write them that define the layouts, and what these make of them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.factories import Tensor, read_file

from tq3.dequantization.source import open_original
from tq3.errors import BadInput
from tq3.storage.local import LocalFiles

GOLDEN = Path(__file__).parents[1] / "golden" / "quantised"
REFUSED = {
    "ct-mxfp6": "floats of 6 bits",
    "ct-int4-odd": r"\[10, 76\], expected \[10, 80\]",
}
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
# Both programs join the two scales of NVFP4 first, and so round twice (docs/format.md, section 9).
JOINED = {"modelopt-nvfp4", "modelopt-nvfp4a16"}
TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_weights_are_those_that_the_program_itself_makes_of_its_checkpoint(name):
    files, checkpoint = open_original(LocalFiles(GOLDEN / name))
    theirs = read_file(GOLDEN / name / "decoded.safetensors")
    found = {tensor.info.name: tensor for tensor in checkpoint.tensors}
    assert {name for name, each in found.items() if each.pieces} >= theirs.keys() != set()
    assert not [name for name in found if not name.endswith(".weight")]  # no scale is left
    for weight, their in theirs.items():
        virtual = found[weight]
        assert virtual.info.shape == their.shape
        data = files.read(virtual.file, virtual.offset, virtual.info.n_bytes)
        ours = np.frombuffer(data, np.float32).reshape(their.shape)
        assert_same(ours, their, max_ulp=name in JOINED)


def assert_same(ours: np.ndarray, theirs: Tensor, max_ulp: int) -> None:
    """Equal once rounded to the type in which they were computed."""
    rounded = ours.astype(TYPES[theirs.dtype]).astype(np.float32)
    np.testing.assert_array_max_ulp(rounded, theirs.values, maxulp=max_ulp)
    assert np.abs(ours).max() > 0.01


@pytest.mark.parametrize("name", REFUSED)
def test_what_headers_alone_would_decode_wrongly_is_refused(name):
    with pytest.raises(BadInput, match=REFUSED[name]):
        files, checkpoint = open_original(LocalFiles(GOLDEN / name))
        for tensor in checkpoint.tensors:
            files.read(tensor.file, tensor.offset, tensor.info.n_bytes)
