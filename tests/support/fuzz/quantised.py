"""Headers of quantised sources, as fuzzers' bytes tell them, and what must hold of any.

An input is a number n, n tensors of eight bytes (an ending of the name, a stem, a dtype, how many
dimensions, four of these by a table) and config.json as it is.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

from tq3.dequantization.layouts import LAYOUTS, NOT_ALONE, OF_NO_WEIGHT
from tq3.dequantization.recognition import dequantised
from tq3.dequantization.source import DequantizedSource
from tq3.errors import BadInput
from tq3.format.checkpoint import FIRST_VIRTUAL, Checkpoint, Located
from tq3.format.header import DTYPE_BITS, TensorInfo

ENDINGS = sorted(
    {
        *(each.codes for each in LAYOUTS),
        *(scales for each in LAYOUTS for scales in each.scales),
        *(each.name for each in LAYOUTS),
        *(each.global_scale for each in LAYOUTS),
        *(each.zero_points for each in LAYOUTS),
        *(each.width for each in LAYOUTS),
        *NOT_ALONE,
        *OF_NO_WEIGHT,
        *(".input_scale", "_input_scale", ".k_scale", ".bias"),
    }
)
STEMS = ("a", "model.layers.0.mlp.experts.up_proj", "model.norm")
DTYPES = (*DTYPE_BITS,)
_LARGEST = 2**62
DIMENSIONS = (
    *(0, 1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 127, 128, 130, 192, 256, 4096),
    *(2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**61),
)
_TENSOR_BYTES = 8
_MAX_TENSORS = 9
_MAX_ALLOCATED = 16 * 2**20
_MAX_COLUMNS = 2**16


def listing(data: bytes) -> Checkpoint:
    """What a folder of such headers would be read to."""
    count = data[0] % (_MAX_TENSORS + 1) if data else 0
    codes, text = data[1 : 1 + count * _TENSOR_BYTES], data[1 + count * _TENSOR_BYTES :]
    starts = range(0, len(codes) - _TENSOR_BYTES + 1, _TENSOR_BYTES)
    infos = (_info(codes[start : start + _TENSOR_BYTES]) for start in starts)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = {}
    return placed(infos, config if isinstance(config, dict) else {})


def placed(infos: Iterable[TensorInfo], config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of these in two files, as far as headers can say so."""
    tensors: dict[str, Located] = {}
    end = 0
    for number, info in enumerate(infos):
        # Whole bytes, of a file that a disk can hold.
        is_whole = prod(info.shape) * DTYPE_BITS[info.dtype] % 8 == 0
        if is_whole and end + info.n_bytes < _LARGEST:
            tensors[info.name] = Located(info, f"{number % 2}.safetensors", end)
            end += info.n_bytes
    stamps = {f"{i}.safetensors": "as it was" for i in (0, 1)}
    return Checkpoint(tuple(tensors.values()), stamps, config)


def as_input(infos: list[TensorInfo], config: dict[str, Any]) -> bytes:
    """The input that stands for these, as far as the tables have their parts."""
    found = [code for info in infos if (code := _code(info))]
    return bytes([len(found)]) + b"".join(found) + json.dumps(config).encode()


def check(checkpoint: Checkpoint) -> None:
    """Recognised or refused by us, in a bounded memory; what is recognised can be read."""
    tracemalloc.start()
    try:
        found = dequantised(checkpoint)
        _check_pieces(checkpoint, found)
        _check_reading(checkpoint, found)
        assert tracemalloc.get_traced_memory()[1] < _MAX_ALLOCATED
    except BadInput as error:
        assert 10 < len(str(error)) < 2000
    finally:
        tracemalloc.stop()


def seeds() -> Iterator[bytes]:
    """A weight of each layout."""
    for layout in LAYOUTS:
        codes = (32, 4, 16) if layout.codes == "_blocks" else (32, 128)
        infos = [TensorInfo("a" + layout.codes, layout.dtypes[0], codes)]
        for shape in ((1, 1), (32, 4), (32, 8), (32, 16), (32, 32), ()):
            scale = TensorInfo("a" + layout.scales[0], layout.scale_dtypes[0], shape)
            others = [
                TensorInfo("a" + ending, dtype, of)
                for ending, dtype, of in (
                    (layout.global_scale, "F32", ()),
                    (layout.width, "I64", (2,)),
                )
                if ending
            ]
            yield as_input([*infos, scale, *others], _CONFIG)


_CONFIG = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "weight_block_size": [128, 128],
        "config_groups": {
            "a": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "type": "int"}}
        },
    }
}


def _info(code: bytes) -> TensorInfo:
    ending, stem, dtype, count, *sides = code
    shape = (DIMENSIONS[side % len(DIMENSIONS)] for side in sides[: count % 5])
    name = STEMS[stem % len(STEMS)] + ENDINGS[ending % len(ENDINGS)]
    return TensorInfo(name, DTYPES[dtype % len(DTYPES)], tuple(shape))


def _code(info: TensorInfo) -> bytes | None:
    for number, stem in enumerate(STEMS):
        ending = info.name.removeprefix(stem)
        if ending in ENDINGS and stem + ending == info.name and set(info.shape) <= {*DIMENSIONS}:
            sides = [DIMENSIONS.index(side) for side in info.shape]
            head = (ENDINGS.index(ending), number, DTYPES.index(info.dtype), len(sides))
            return bytes((*head, *sides)).ljust(_TENSOR_BYTES, b"\0")
    return None


def _check_pieces(stored: Checkpoint, found: Checkpoint) -> None:
    """Each virtual tensor has the bytes that decoding needs, and a place of its own."""
    names = [tensor.info.name for tensor in found.tensors]
    assert len(names) == len(set(names))
    ends: dict[str, int] = {}
    for tensor in found.tensors:
        if not tensor.pieces:
            assert tensor in stored.tensors
            continue
        pieces, encoding = tensor.pieces, tensor.pieces.encoding
        *stack, rows, columns = (1, 1, *tensor.info.shape)
        assert prod(stack) * rows * columns > 0
        assert pieces.codes.info.n_bytes == prod(stack) * rows * encoding.row_bytes(columns)
        n_scales = prod(stack) * prod(encoding.grid(rows, columns))
        assert pieces.scales.info.n_elements in (1, n_scales)
        assert tensor.offset == ends.get(tensor.file, FIRST_VIRTUAL)
        ends[tensor.file] = tensor.offset + tensor.info.n_bytes


def _check_reading(stored: Checkpoint, found: Checkpoint) -> None:
    """The first and the last element are decoded from bytes of its own pieces."""
    files: Any = _Within(stored)
    source = DequantizedSource(files, found)
    for tensor in found.tensors:
        if tensor.pieces and max(tensor.info.shape[-1:]) <= _MAX_COLUMNS:
            # The width is content, which `_Within` does not know.
            without = replace(tensor.pieces, width=None)
            some = replace(found, tensors=(replace(tensor, pieces=without),))
            source = DequantizedSource(files, some)
            for place in (0, tensor.info.n_bytes - 4):
                assert len(source.read(tensor.file, tensor.offset + place, 4)) == 4


class _Within:
    """Files whose tensors hold ones; what is read lies in one of them."""

    label = "fuzzed"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        assert any(
            each.file == name and each.offset <= offset <= offset + len(buffer) <= _end(each)
            for each in self._tensors
        ), f"{name} {offset} {len(buffer)}"
        buffer[:] = b"\1" * len(buffer)


def _end(tensor: Located) -> int:
    return tensor.offset + tensor.info.n_bytes
