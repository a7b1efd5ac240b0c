"""The compiled linear kernels: which one is used, and how tensors reach it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch

import tq3.runtime._linear as _linear  # noqa: PLR0402  see cpu.py
from tq3.codec import tables
from tq3.errors import UsageError
from tq3.runtime import arithmetic as fixed
from tq3.runtime.threads import team

# Of dtypes, as kernels know them.
NUMBERS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def available_kernels() -> tuple[str, ...]:
    """Names of the kernels that run on this machine, best first. The last is always "portable"."""
    return tuple(_kernels())


def get_kernels(name: str | None = None) -> Kernels:
    """The kernels of that name, by default the best."""
    kernels = _kernels()
    if name is None:
        return next(iter(kernels.values()))
    if name not in kernels:
        raise UsageError(
            "no such linear kernels on this machine",
            found=repr(name),
            expected=f"one of {', '.join(kernels)}",
            fix="leave the name out to get the best ones",
        )
    return kernels[name]


class Kernels:
    """One instruction set. Tensors are contiguous, on the CPU, and of the shapes that fit.

    x: (tokens, columns); packed: the bytes of rows * n groups; norms: (rows, n) float32
    """

    def __init__(self, kernels: _linear.Kernels) -> None:
        self.name = kernels.name
        self._kernels = kernels

    def linear(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        norms: torch.Tensor,
        bits: int,
        group: int,
        rotation: int,
        out: torch.Tensor,
    ) -> None:
        """Fill out (tokens, rows), of x's dtype, as `tq3.runtime.reference` does."""
        tokens, columns = x.shape
        rows, n = norms.shape
        self._kernels.linear(
            _width(bits, group, rotation),
            team(),
            x.data_ptr(),
            tokens,
            columns,
            NUMBERS[x.dtype],
            packed.data_ptr(),
            norms.data_ptr(),
            rows,
            n,
            out.data_ptr(),
        )

    def bound(self, bits: int, group: int, rotation: int) -> Callable[..., None]:
        """What `linear` calls, for layers of one width: it takes addresses."""
        return partial(self._kernels.linear, _width(bits, group, rotation))

    def rotate(
        self, x: torch.Tensor, bits: int, group: int, rotation: int, out: torch.Tensor
    ) -> None:
        """Fill out (tokens, n * group): x padded with zeros, in rotated space."""
        tokens, columns = x.shape
        self._kernels.rotate(
            _width(bits, group, rotation),
            team(),
            x.data_ptr(),
            tokens,
            columns,
            NUMBERS[x.dtype],
            out.shape[1] // group,
            NUMBERS[out.dtype],
            out.data_ptr(),
        )

    def decode(
        self,
        packed: torch.Tensor,
        norms: torch.Tensor,
        bits: int,
        group: int,
        first_row: int,
        out: torch.Tensor,
    ) -> None:
        """Fill out (some rows, n * group): the weights from first_row on, in rotated space."""
        self._kernels.decode(
            _width(bits, group, group),
            team(),
            packed.data_ptr(),
            norms.data_ptr(),
            norms.shape[1],
            first_row,
            first_row + len(out),
            NUMBERS[out.dtype],
            out.data_ptr(),
        )


@cache
def _kernels() -> dict[str, Kernels]:
    return {kernels.name: Kernels(kernels) for kernels in _linear.kernels_that_run_here()}


@cache
def _width(bits: int, group: int, rotation: int) -> _linear.Width:
    d1, d2 = tables.signs(group)
    return _linear.Width(
        bits=bits,
        group=group,
        rotation=rotation,
        whole_levels=np.array(fixed.integer_codebook(bits), np.int8),
        unit=fixed.unit(bits, group, rotation),
        levels=tables.codebook(bits, group),
        d1=d1,
        d2=d2,
        inverse_root_rotation=float(np.float32(1 / np.sqrt(rotation))),
    )
