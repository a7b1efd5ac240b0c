"""What a TQ3 folder must hold and restore to, by the safetensors library and the reference codec.

Nothing here uses tq3's own reader, writer, plan or policy.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from tq3.codec import reference
from tq3.codec.backend import Backend

BITS, GROUP = 3, 128
GROUP_BYTES = GROUP * BITS // 8
Tensors = dict[str, torch.Tensor]


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of a checkpoint. An index must name exactly the tensors of its files."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return _read_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors: Tensors = {}
    for file in sorted(set(weight_map.values())):
        of_file = _read_file(folder / file)
        assert set(of_file) == {name for name, home in weight_map.items() if home == file}
        tensors |= of_file
    return tensors


def _read_file(path: Path) -> Tensors:
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def compressed_names(stored: Tensors) -> set[str]:
    """Names of the source tensors that a TQ3 checkpoint holds as codes and norms."""
    packed = {name.removesuffix(".tq_packed") for name in stored if name.endswith(".tq_packed")}
    norms = {name.removesuffix(".tq_norms") for name in stored if name.endswith(".tq_norms")}
    assert packed == norms
    return packed


def assert_same(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """Type, shape and every bit (of 16-bit floats)."""
    assert found.dtype == wanted.dtype, name
    assert found.shape == wanted.shape, name
    assert torch.equal(found.view(torch.int16), wanted.view(torch.int16)), name


def assert_stored_shapes(source: torch.Tensor, packed: torch.Tensor, norms: torch.Tensor) -> None:
    rows, cols = source.flatten(0, -2).shape
    n = -(-cols // GROUP)
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (rows * n, GROUP_BYTES))
    assert (norms.dtype, tuple(norms.shape)) == (torch.float32, (rows, n))


def assert_stored_is_reference(
    source: torch.Tensor, packed: torch.Tensor, norms: torch.Tensor
) -> None:
    """Codes and norms equal the reference codec's, bit for bit."""
    codes, scale = reference.encode(_words(source), "BF16", BITS, GROUP, "search")
    assert np.array_equal(packed.numpy(), codes)
    assert np.array_equal(norms.numpy().view(np.uint32), scale.view(np.uint32))


def assert_stored_is_coded_by(
    backend: Backend, source: torch.Tensor, packed: torch.Tensor, norms: torch.Tensor
) -> None:
    """The same beside a backend, in a thousandth of the reference's time."""
    codes, scale = np.empty_like(packed.numpy()), np.empty_like(norms.numpy())
    backend.encode(_words(source), "BF16", BITS, GROUP, codes, scale, "search")
    assert np.array_equal(packed.numpy(), codes)
    assert np.array_equal(norms.numpy().view(np.uint32), scale.view(np.uint32))


def kept(source: torch.Tensor) -> torch.Tensor:
    """A tensor that is not compressed, as stored: FP16, or its own type where FP16 overflows."""
    half = source.to(torch.float16)
    return source if half.isinf().any() else half


def decoded(packed: torch.Tensor, norms: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A compressed tensor as it is restored: the reference's weights, rounded once to bf16."""
    values = reference.decode(packed.numpy(), norms.numpy(), BITS, GROUP, shape[-1])
    words = reference.from_float32(values, "BF16").view(np.int16)
    return torch.from_numpy(words).view(torch.bfloat16).reshape(shape)


def round_tripped(source: torch.Tensor) -> torch.Tensor:
    """decode(encode(source)), without a file in between."""
    codes, norms = reference.encode(_words(source), "BF16", BITS, GROUP, "search")
    return decoded(torch.from_numpy(codes), torch.from_numpy(norms), tuple(source.shape))


def _words(source: torch.Tensor) -> np.ndarray:
    """(rows, cols) uint16: the raw words of a bf16 tensor, leading dimensions flattened."""
    assert source.dtype == torch.bfloat16
    return source.flatten(0, -2).view(torch.int16).numpy().view(np.uint16)
