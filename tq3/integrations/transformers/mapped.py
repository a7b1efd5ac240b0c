"""Tensors that can't be used as their file has them: copied, and held once.

Transformers maps files into memory and uses tensors where they lie. One that needs another dtype,
or is joined with others, is copied, and the pages that were read for it would stay in memory beside
the copy for as long as any other tensor lies in the file. Here they are let go on the way.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

# Of a file, in memory at a time.
_PIECE_BYTES = 2**20
# Fewer stay beside their copies: to ask where files are mapped takes milliseconds.
_LEAST_BYTES = 2**16
_MADV_DONTNEED = 4  # Linux's: elsewhere the number may mean another thing
_MAPS = Path("/proc/self/maps")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# What these make are parts of a tensor where it lies. By name: see `placing`.
_VIEWS = {"Chunk", "Split"}


class MappedFiles:
    """The files of a checkpoint that is being loaded, whose tensors nobody has written to."""

    def __init__(self, files: Iterable[str]) -> None:
        self._paths = {realpath(file) for file in files}

    def copied(
        self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None
    ) -> list[torch.Tensor]:
        """The tensors in this dtype, or None for their own, and in memory of their own, none of
        their files' beside it.
        """
        n_bytes = sum(tensor.nbytes for tensor in tensors)
        spans = list(self._spans()) if n_bytes >= _LEAST_BYTES else []
        return [_copied(tensor, dtype or tensor.dtype, spans) for tensor in tensors]

    def let_go(self, tensor: torch.Tensor) -> None:
        """Give back the memory of a tensor that lies in a file. Who reads it again reads that."""
        if _is_in(tensor, self._spans()):
            _let_go(tensor)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """From where to where the files are mapped."""
        if sys.platform != "linux":
            return
        for line in _MAPS.read_text("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=5)
            if fields[5:] and fields[5] in self._paths:
                first, _, last = fields[0].partition("-")
                yield int(first, 16), int(last, 16)


class Copied(ConversionOps):
    """A step of loading: tensors in `dtype`, or None for that of the file, out of `files`."""

    def __init__(self, dtype: torch.dtype | None, files: MappedFiles) -> None:
        self._dtype, self._files = dtype, files

    def convert(
        self, input_dict: dict[str, list[torch.Tensor] | torch.Tensor], **_: Any
    ) -> dict[str, list[torch.Tensor]]:
        """Copy tensors under the names that they have; of a name there may be several."""
        return {
            name: self._files.copied(found if isinstance(found, list) else [found], self._dtype)
            for name, found in input_dict.items()
        }


def copy_once(
    converter: WeightRenaming | WeightConverter,
    found: Any,
    dtype: torch.dtype | None,
    files: MappedFiles,
) -> bool:
    """Have what the host would copy of a tensor copied by a step of ours, if that is so.

    found: the tensor, or a part of its file that stands for it; dtype: that it shall have
    """
    stored = _DTYPES.get(found.get_dtype()) if hasattr(found, "get_dtype") else found.dtype
    is_cast = dtype is not None and dtype != stored
    if not isinstance(converter, WeightConverter):
        if is_cast:
            converter.quantization_operation = Copied(dtype, files)
        return is_cast
    steps = converter.operations
    if is_cast or not {type(step).__name__ for step in steps} <= _VIEWS:
        if not isinstance(steps[0], Copied):
            converter.operations = [Copied(dtype, files), *steps]
        return True
    return False


def _copied(
    tensor: torch.Tensor, dtype: torch.dtype, spans: Iterable[tuple[int, int]]
) -> torch.Tensor:
    if not _is_in(tensor, spans):
        return tensor.to(dtype)
    copy = torch.empty(tensor.shape, dtype=dtype)
    step = _PIECE_BYTES // tensor.element_size()
    pieces = zip(tensor.view(-1).split(step), copy.view(-1).split(step), strict=True)
    for source, target in pieces:
        target.copy_(source)
        _let_go(source)
    return copy


def _is_in(tensor: torch.Tensor, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether one of the files is mapped there: other memory would lose its values."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return any(first <= start and end <= last for first, last in spans)


def _let_go(tensor: torch.Tensor) -> None:
    """Give whole pages back; those at a tensor's ends hold values of its neighbours, too."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        # It is advice: memory stays as it was where the kernel does not take it.
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)
