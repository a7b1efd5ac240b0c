"""Packed layers and activations for the tests of the runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tq3.codec import reference as codec

BITS = (2, 3, 4)
GROUPS = (32, 64, 128, 256)
ROTATIONS = [(group, rotation) for group in GROUPS for rotation in GROUPS if rotation <= group]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPECIAL = ("zeros", "nan", "inf", "tiny", "denormal", "one huge", "overflow")


def layer(
    rows: int, n: int, bits: int = 3, group: int = 128, seed: int = 0, lead: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Any bytes and plausible norms: (rows * n, bytes of a group) and (rows, n)."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (*lead, rows * n, group * bits // 8), np.uint8)
    norms = rng.lognormal(0, 0.5, (*lead, rows, n)).astype(np.float32)
    return torch.from_numpy(packed), torch.from_numpy(norms)


def encoded_layer(
    weights: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer that was compressed from these float32 weights."""
    packed, norms = codec.encode(weights.numpy().view(np.uint32), "F32", bits, group)
    return torch.from_numpy(packed), torch.from_numpy(norms)


def decoded(
    packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int, columns: int
) -> torch.Tensor:
    """The weights as the format defines them, in float64."""
    weights = codec.decode(packed.numpy(), norms.numpy(), bits, group, columns)
    return torch.from_numpy(weights).double()


def activations(
    tokens: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Gaussian, no column like another."""
    rng = np.random.default_rng(seed + 1)
    values = rng.normal(size=(tokens, columns)) * rng.lognormal(0, 1, columns)
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


def spoil(x: torch.Tensor, kind: str, row: int) -> torch.Tensor:
    """Put something special into a row of x."""
    column = row % x.shape[1]
    largest = torch.finfo(x.dtype).max
    if kind == "zeros":
        x[row] = 0
    elif kind in ("tiny", "denormal"):
        x[row] *= 2.0**-100 if kind == "tiny" else 2.0**-135
    else:
        value = {"nan": torch.nan, "inf": -torch.inf, "one huge": largest / 4096}
        x[row, column] = value.get(kind, largest)
        if kind == "overflow":
            x[row] = x[row].sign() * largest
    return x


@st.composite
def problems(draw: st.DrawFn, most_tokens: int = 20, widths: tuple[int, ...] = BITS) -> Any:
    """A layer and activations for it: bits, group, rotation, x, packed, norms."""
    bits = draw(st.sampled_from(widths))
    group, rotation = draw(st.sampled_from(ROTATIONS))
    n = draw(st.sampled_from([1, 2, 7, 8, 9, 17]))
    tokens, rows = draw(st.integers(1, most_tokens)), draw(st.integers(1, 70))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    columns = n * group - draw(st.sampled_from([0, 1, 8, group - 1]))
    x = activations(tokens, columns, dtype, seed)
    for kind in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
        spoil(x, kind, draw(st.integers(0, tokens - 1)))
    return bits, group, rotation, x, *layer(rows, n, bits, group, seed)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, any NaN like another."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    word = torch.int32 if found.dtype == torch.float32 else torch.int16
    both_nan = found.isnan() & expected.isnan()
    same = (found.view(word) == expected.view(word)) | both_nan
    assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} values differ"


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, root of mean squares."""
    return float((found.double() - exact).norm() / exact.norm())


def calls_of(function: Callable[[], object]) -> int:
    """How many calls of functions, Python's and compiled ones, a second call of it makes."""
    count = 0

    def note(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    function()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
