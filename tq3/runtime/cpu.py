"""A packed linear layer on the processor: compiled kernels, and torch's GEMM for many tokens."""

from __future__ import annotations

import sys
from functools import cache
from typing import NamedTuple

import torch

import tq3.runtime._linear as _linear  # noqa: PLR0402  a missing module must be told from a broken one
from tq3.format.layout import GroupLayout
from tq3.runtime.arguments import check_layer
from tq3.runtime.native import NUMBERS, get_kernels
from tq3.runtime.threads import team

# Up to so many tokens the integer kernel beats decoding and multiplying (docs/kernels.md), by the
# type that would be multiplied. bfloat16 is that type only where torch has AMX.
_WITHOUT_BLOCKS = {torch.bfloat16: 16, torch.float32: 32}
MOST_TOKENS = {
    "amx": {torch.bfloat16: 128, torch.float32: sys.maxsize},
    "avx512vnni": {torch.bfloat16: 16, torch.float32: 512},
    "avx2": {torch.bfloat16: 16, torch.float32: 512},
    "neon": _WITHOUT_BLOCKS,
    "portable": _WITHOUT_BLOCKS,
}
# Asked once: the question is an instruction that stops a virtual machine for 10 us.
_FAST_BF16 = _linear.multiplies_bf16_fast()
# Decoded weights at a time: few enough to stay in a core's cache until they are multiplied.
TILE_WEIGHTS = 1 << 21


class _Form(NamedTuple):
    """An input, the shape of its result, and what the kernel is told of both and of the layer."""

    shape: torch.Size | None
    dtype: torch.dtype | None
    of_out: tuple[int, ...]
    arguments: tuple[int, ...]


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Arguments and result as in `tq3.runtime.reference.linear`; equal to it for few tokens."""
    x, kernels = x.contiguous(), get_kernels()
    if len(x) > most_tokens(x.dtype):
        return multiply_tiles(x, packed, norms, bits, group, rotation)
    out = x.new_empty(len(x), len(norms))
    kernels.linear(x, packed, norms, bits, group, rotation, out)
    return out


@cache
def most_tokens(dtype: torch.dtype) -> int:
    """Up to so many tokens of this dtype kernels multiply; beyond, it is torch."""
    multiplied = multiplied_as(torch.empty(0, dtype=dtype))
    return MOST_TOKENS[get_kernels().name][multiplied]


class Layer:
    """A layer whose codes and norms were checked, and what its kernel is told of them each time."""

    __slots__ = ("_columns", "_last", "_linear", "_places", "_sizes")

    def __init__(self, packed: torch.Tensor, norms: torch.Tensor, layout: GroupLayout) -> None:
        rows, n = norms.shape
        self._columns = layout.cols
        self._linear = get_kernels().bound(layout.bits, layout.group, layout.group)
        self._places, self._sizes = (packed.data_ptr(), norms.data_ptr()), (rows, n)
        self._last = _Form(None, None, (), ())

    def is_of(self, packed: torch.Tensor, norms: torch.Tensor) -> bool:
        """As `direct.Ready` says."""
        return self._places == (packed.data_ptr(), norms.data_ptr())

    def multiply(self, x: torch.Tensor, *_: object) -> torch.Tensor | None:
        """As `direct.Ready` says. Kernels see by themselves that an input is the last one's."""
        form = self._last
        if x.shape != form.shape or x.dtype is not form.dtype or not x.is_cpu:
            found = self._form(x)
            if found is None:
                return None
            self._last = form = found  # a model asks for the same again and again
        x, out = x.contiguous(), x.new_empty(form.of_out)
        self._linear(team(), x.data_ptr(), *form.arguments, out.data_ptr())
        return out

    def _form(self, x: torch.Tensor) -> _Form | None:
        shape, number = x.shape, NUMBERS.get(x.dtype)
        columns = shape[-1] if shape else 0
        if number is None or columns != self._columns or not x.is_cpu:
            return None
        tokens = x.numel() // columns
        if tokens > most_tokens(x.dtype):
            return None
        arguments = tokens, columns, number, *self._places, *self._sizes
        return _Form(shape, x.dtype, (*shape[:-1], self._sizes[0]), arguments)


def ready(packed: torch.Tensor, norms: torch.Tensor, layout: GroupLayout) -> Layer:
    """As `direct.ready` says."""
    check_layer(packed, norms, layout.bits, layout.group, layout.group)
    return Layer(packed, norms, layout)


def multiply_tiles(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """Multiply many tokens: decode some rows in rotated space, multiply, forget them."""
    kernels = get_kernels()
    rows, n = norms.shape
    columns = n * group
    dtype = multiplied_as(x)
    rotated = x.new_empty(len(x), columns, dtype=dtype)
    kernels.rotate(x, bits, group, rotation, rotated)
    out = x.new_empty(len(x), rows)
    step = max(1, min(rows, TILE_WEIGHTS // columns))
    tile = x.new_empty(step, columns, dtype=dtype)
    for first in range(0, rows, step):
        part = tile[: rows - first]
        kernels.decode(packed, norms, bits, group, first, part)
        out[:, first : first + step] = rotated @ part.T
    return out


def decode(packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """As `generic.decode`: all these rows in rotated space.  (rows, n * group) float32"""
    rows, n = norms.shape
    out = norms.new_empty(rows, n * group)
    get_kernels().decode(packed, norms, bits, group, 0, out)
    return out


def multiplied_as(x: torch.Tensor) -> torch.dtype:
    """bfloat16 where the processor has matrix units for it, float32 everywhere else."""
    return torch.bfloat16 if _FAST_BF16 and x.dtype == torch.bfloat16 else torch.float32
