"""What the operators take: checked here, in the words of every error of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from tq3.format.recipe import GROUP_SIZES, WIDTHS
from tq3.runtime.cuda.layout import TILE, UNIT, padded_groups
from tq3.runtime.cuda.pairs import sizes

# Of activations.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_linear(
    x: torch.Tensor, packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int, rotation: int
) -> None:
    """Refuse what is no packed layer of that width for that x."""
    check_layer(packed, norms, bits, group, rotation)
    _check_tensors(x, norms, group)
    if x.dim() == 0:
        refuse("x.shape", (), "at least one dimension")


def check_layer(
    packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int, rotation: int, *before: str
) -> None:
    """Refuse what is no packed layer of that width. before: dimensions of norms ahead of its own"""
    _check_width(bits, group, rotation)
    if norms.dim() != len(before) + 2:
        expected = ", ".join((*before, "rows, groups of a row"))
        refuse("norms.shape", norms.shape, f"({expected})")
    if packed.dtype != torch.uint8:
        refuse("packed.dtype", packed.dtype, torch.uint8)
    if norms.dtype != torch.float32:
        refuse("norms.dtype", norms.dtype, torch.float32)
    n_bytes = norms.numel() * group * bits // 8
    if packed.numel() != n_bytes:
        expected = f"{n_bytes} bytes, for norms of the shape {tuple(norms.shape)}"
        refuse("packed.shape", packed.shape, expected)
    # A copy at each call would be slower than the layer itself.
    if not packed.is_contiguous() or not norms.is_contiguous():
        refuse("packed and norms", "strided memory", "contiguous tensors")
    _check_devices(packed, norms)


def check_experts(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    experts: torch.Tensor,
    bits: int,
    group: int,
    rotation: int,
) -> None:
    """Refuse what are no packed experts of that width for that x."""
    check_layer(packed, norms, bits, group, rotation, "experts")
    if x.dim() != 2:
        refuse("x.shape", x.shape, "(pairs, columns)")
    _check_tensors(x, norms, group)
    if experts.dtype != torch.int64 or experts.shape != x.shape[:1]:
        found = f"{tuple(experts.shape)} of {experts.dtype}"
        refuse("experts", found, f"{tuple(x.shape[:1])} of torch.int64")


def check_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> None:
    """Refuse what are no packed rows of that width, or no numbers of rows."""
    check_layer(packed, norms, bits, group, group)
    _check_ids(ids, dtype)
    _check_devices(ids, norms)
    _check_row("columns", columns, columns, norms, group)


def check_tiled(
    x: torch.Tensor, words: torch.Tensor, norms: torch.Tensor, rows: int, group: int, rotation: int
) -> None:
    """Refuse what is no layer in tiles for that x."""
    _check_tiles(words, norms, rows, group, rotation)
    if x.dim() == 0:
        refuse("x.shape", (), "at least one dimension")
    _check_activations(x, words, norms, group)


def check_layer_in_tiles(words: torch.Tensor, norms: torch.Tensor, rows: int, group: int) -> None:
    """Refuse what is no layer in tiles."""
    _check_tiles(words, norms, rows, group, group)
    _check_devices(words, norms)


def check_tiled_experts(
    x: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    order: torch.Tensor,
    jobs: torch.Tensor,
    rows: int,
    group: int,
    rotation: int,
) -> None:
    """Refuse what are no experts in tiles for that x, or a routing that was made for others."""
    _check_tiles(words, norms, rows, group, rotation, "experts")
    if x.dim() != 2:
        refuse("x.shape", x.shape, "(pairs, columns)")
    _check_activations(x, words, norms, group)
    of_order, of_jobs = sizes(x.shape[0], words.shape[0], group)
    is_one = order.dtype == torch.int64 and jobs.dtype == torch.int32
    if not is_one or order.shape != (of_order,) or jobs.shape != (of_jobs, 4):
        found = f"{tuple(order.shape)} of {order.dtype}, {tuple(jobs.shape)} of {jobs.dtype}"
        expected = f"{(of_order,)} of torch.int64, {(of_jobs, 4)} of torch.int32"
        refuse("order and jobs", found, f"{expected}: those of tq3::route for this layer")
    _check_devices(x, order, jobs)


def check_route(experts: torch.Tensor, count: int, group: int) -> None:
    """Refuse what are no numbers of experts."""
    _check_width(WIDTHS[0], group, group)
    if experts.dtype != torch.int64 or experts.dim() != 1 or count < 1:
        found = f"{tuple(experts.shape)} of {experts.dtype} below {count}"
        refuse("experts", found, "(pairs,) of torch.int64 below at least 1")


def check_tiled_embedding(
    ids: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> None:
    """Refuse what are no rows in tiles, or no numbers of rows."""
    _check_tiles(words, norms, words.shape[:1].numel() * TILE, group, group)
    _check_ids(ids, dtype)
    _check_devices(ids, words, norms)
    _check_columns("columns", columns, words, group)


def refuse(what: str, found: object, expected: object) -> NoReturn:
    """An error in the words of the codec's."""
    found = tuple(found) if isinstance(found, torch.Size) else found
    raise ValueError(f"{what}: found {found}, expected {expected}")


def _check_width(bits: int, group: int, rotation: int) -> None:
    if bits not in WIDTHS:
        refuse("bits", bits, _one_of(WIDTHS))
    if group not in GROUP_SIZES:
        refuse("group", group, _one_of(GROUP_SIZES))
    if rotation not in GROUP_SIZES or rotation > group:
        expected = f"{_one_of(GROUP_SIZES)}, and at most the group of {group}"
        refuse("rotation", rotation, expected)


def _one_of(choices: Sequence[object]) -> str:
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}"


def _check_dtype(what: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        refuse(what, dtype, _one_of(DTYPES))


def _check_tensors(x: torch.Tensor, norms: torch.Tensor, group: int) -> None:
    _check_dtype("x.dtype", x.dtype)
    _check_devices(x, norms)
    if x.dim():
        _check_row("x.shape", x.shape, x.shape[-1], norms, group)


def _check_ids(ids: torch.Tensor, dtype: torch.dtype) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        refuse("ids.dtype", ids.dtype, "torch.int64 or torch.int32")
    _check_dtype("dtype", dtype)


def _check_tiles(
    words: torch.Tensor, norms: torch.Tensor, rows: int, group: int, rotation: int, *before: str
) -> None:
    """before: dimensions ahead of those of one layer"""
    if words.dim() != len(before) + 5:
        expected = ", ".join((*before, f"tiles, units, bits, {TILE}, 4"))
        refuse("words.shape", words.shape, f"({expected})")
    *lead, tiles, units, bits, lanes, word = words.shape
    _check_width(bits, group, rotation)
    if words.dtype != torch.int32 or (lanes, word) != (TILE, 4):
        found = f"{tuple(words.shape)} of {words.dtype}"
        refuse("words", found, f"(..., {TILE}, 4) of torch.int32")
    of_norms = (*lead, tiles, units * UNIT // group, 8, 4)
    if norms.dtype != torch.float32 or norms.shape != of_norms:
        found = f"{tuple(norms.shape)} of {norms.dtype}"
        refuse("norms", found, f"{of_norms} of torch.float32")
    if not words.is_contiguous() or not norms.is_contiguous():
        refuse("words and norms", "strided memory", "contiguous tensors")
    if not (tiles - 1) * TILE < rows <= tiles * TILE:
        refuse("rows", rows, f"those of {tiles} tiles of {TILE}")


def _check_activations(
    x: torch.Tensor, words: torch.Tensor, norms: torch.Tensor, group: int
) -> None:
    _check_dtype("x.dtype", x.dtype)
    _check_devices(x, words, norms)
    _check_columns("x.shape", x.shape[-1], words, group)


def _check_columns(what: str, columns: int, words: torch.Tensor, group: int) -> None:
    units = words.shape[-4]
    if padded_groups(-(-columns // group), group) * group != units * UNIT:
        refuse(what, f"{columns} columns", f"those of {units} units of {UNIT}")


def _check_devices(*tensors: torch.Tensor) -> None:
    first, *others = (tensor.device for tensor in tensors)
    if any(other != first for other in others):
        found = f"{first}, {' and '.join(map(str, others))}"
        refuse("devices", found, "one and the same")


def _check_row(what: str, found: object, columns: int, norms: torch.Tensor, group: int) -> None:
    n = norms.shape[-1]
    if not max(0, n - 1) * group < columns <= n * group:
        expected = f"{(n - 1) * group + 1} to {n * group} columns, for {n} groups of {group}"
        refuse(what, found, expected)
