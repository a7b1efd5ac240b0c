"""The tensors of a checkpoint by the names of its source, as torch tensors on the processor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from tq3.codec.backend import get_backend
from tq3.dequantization.orientation import turned_like
from tq3.dequantization.source import open_original
from tq3.equalization.scaled_source import equalized
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located, read_checkpoint
from tq3.format.files import Source
from tq3.format.layout import NORMS, SUFFIXES, GroupLayout
from tq3.plan.restoring import packed_layouts, read_tq_config

_DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}
_WHICH = "--source must be the original checkpoint, and OUT the folder that was compressed from it"


class Tensors:
    """Reads one tensor at a time; compressed ones are decoded to float32, as the format says.

    shapes: name in the source -> shape
    n_bytes: name -> bytes in the files, of codes and norms where it is compressed
    """

    def __init__(
        self, files: Source, checkpoint: Checkpoint, layouts: Mapping[str, GroupLayout]
    ) -> None:
        self._files = files
        self._located = {tensor.info.name: tensor for tensor in checkpoint.tensors}
        self.layouts = layouts
        kept = {name: (located,) for name, located in self._located.items()}
        for name, layout in layouts.items():
            codes = kept.pop(name + SUFFIXES[layout.code])
            kept[name] = codes + kept.pop(name + NORMS)  # type: ignore[assignment]
        self.n_bytes = {n: sum(part.n_bytes for part in parts) for n, parts in kept.items()}
        self.shapes = {
            name: layouts[name].host_shape if name in layouts else parts[0].of_host.info.shape
            for name, parts in kept.items()
        }

    def __call__(self, name: str) -> torch.Tensor:
        """The tensor as hosts have it. Raises BadInput for a type that no model has."""
        if name in self.layouts:
            layout = self.layouts[name]
            tensor, is_transposed = self._decoded(name, layout), layout.transposed
        else:
            located = self._located[name]
            tensor, is_transposed = self._read(located), located.transposed
        return tensor.mT.contiguous() if is_transposed else tensor

    def _decoded(self, name: str, layout: GroupLayout) -> torch.Tensor:
        packed = self._read(self._located[name + SUFFIXES[layout.code]])
        norms = self._read(self._located[name + NORMS]).float().flatten(0, -2)
        weights = torch.empty(layout.shape)
        words = weights.view(layout.rows, layout.cols).numpy().view(np.uint32)
        codec = get_backend()
        parts = packed.numpy(), norms.numpy()
        codec.decode(*parts, layout.bits, layout.group, words, "F32", layout.code)
        return weights

    def _read(self, tensor: Located) -> torch.Tensor:
        info = tensor.info
        if info.dtype not in _DTYPES:
            raise BadInput(
                "a type that models don't compute in",
                file=tensor.file,
                tensor=info.name,
                found=info.dtype,
                expected=", ".join(_DTYPES),
            )
        read = torch.empty(info.n_bytes, dtype=torch.uint8)
        self._files.read_into(tensor.file, tensor.offset, read.numpy().data)
        return read.view(_DTYPES[info.dtype]).view(info.shape)


def open_both(originals: Source, files: Source) -> tuple[Tensors, Tensors, bool]:
    """An ordinary checkpoint, the TQ3 checkpoint made from it, and whether columns are equalized.

    Where they are the first one's are, too: it computes the same, and weights can
    be compared. Raises BadInput for a quantised source, and where the other one is none of ours.
    """
    originals, checkpoint = open_original(originals, _WHICH)
    ours = read_checkpoint(files)
    config = read_tq_config(files, ours.config)
    layouts = packed_layouts(ours, config)
    originals, checkpoint = turned_like(layouts.values(), originals, checkpoint)
    original = Tensors(equalized(originals, checkpoint, config.factors), checkpoint, {})
    compressed = Tensors(files, ours, layouts)
    return original, compressed, bool(config.factors)


def check_belong_together(ours: Tensors, original: Tensors, out: str, source: str) -> None:
    """Raise BadInput unless both have the same tensors of the same shapes."""
    for here, there, file, other in (
        (original.shapes, ours.shapes, out, source),
        (ours.shapes, original.shapes, source, out),
    ):
        missing = sorted(here.keys() - there.keys())
        if missing:
            raise _strangers(f"a tensor that {other} has is missing", file, missing[0], None, None)
    for name, shape in original.shapes.items():
        if ours.shapes[name] != shape:
            found, expected = list(ours.shapes[name]), list(shape)
            raise _strangers("not of the source's shape", out, name, found, expected)


def bits_per_weight(tensors: Tensors, names: Iterable[str]) -> float:
    """Stored bits, norms included, over the elements of these tensors."""
    known = [name for name in names if name in tensors.shapes]
    elements = sum(math.prod(tensors.shapes[name]) for name in known)
    return 8 * sum(tensors.n_bytes[name] for name in known) / max(elements, 1)


def _strangers(message: str, file: str, tensor: str, found: object, expected: object) -> BadInput:
    return BadInput(
        message,
        file=file,
        tensor=tensor,
        found=found,
        expected=expected,
        fix="give the checkpoint that OUT was made from as --source",
    )
