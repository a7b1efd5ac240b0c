"""torch.ops.tq3 for layers that were brought into tiles: what GPUs with kernels of ours are given.

tq3::linear_tiled(Tensor x, Tensor words, Tensor norms, int rows, int group, int? rotation=None)
tq3::experts_tiled(Tensor x, Tensor words, Tensor norms, Tensor order, Tensor jobs, int rows,
                   int group, int? rotation=None)
tq3::embedding_tiled(Tensor ids, Tensor words, Tensor norms, int group, int columns,
                     ScalarType dtype)
    As the operators of `tq3.runtime.ops` without `_tiled`: to the same bits as the reference, but
    for linear layers of more tokens than the device's `crossing` says (`cuda.crossings`), which
    torch multiplies in x's dtype.
    words, norms: what `layout.repack` makes of codes and norms; for experts, of all of them
    rows: of the layer, or of each expert; what lies beyond them in the last tile is left out
    order, jobs: what tq3::route gives

tq3::route(Tensor experts, int count, int group) -> (Tensor order, Tensor jobs)
    A `cuda.pairs.Routing` of pair i to expert experts[i] of `count`, for all stacks of a layer.
    experts: (pairs,) int64, taken modulo `count`: to refuse others the host would have to wait.
    Ids of rows are not checked, either.
"""

from __future__ import annotations

import torch

from tq3.format.layout import GroupLayout
from tq3.runtime import rows as looked_up
from tq3.runtime.arguments import (
    DTYPES,
    check_layer_in_tiles,
    check_route,
    check_tiled,
    check_tiled_embedding,
    check_tiled_experts,
    refuse,
)
from tq3.runtime.cuda import calls, layout, pairs, support
from tq3.runtime.cuda import linear as on_device
from tq3.runtime.cuda.launches import Launcher
from tq3.runtime.ops import define, differentiate, no_gradient, reshaped
from tq3.runtime.siblings import Siblings


def linear(
    x: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    rows: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    """What tq3::linear_tiled does with real tensors."""
    rotation = group if rotation is None else rotation
    check_tiled(x, words, norms, rows, group, rotation)
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    if not len(tokens):
        return x.new_empty(*x.shape[:-1], rows)
    layer, widths = layout.Tiles(words, norms), (rows, group, rotation)
    out = on_device.linear(launcher_of(x), tokens, layer, *widths)
    return reshaped(out, *x.shape[:-1], rows)


class Layer:
    """A layer in tiles that was checked, and where it is multiplied."""

    __slots__ = ("_columns", "_device", "_group", "_on", "_places", "_rows")

    def __init__(self, on: Launcher, tiles: layout.Tiles, of: GroupLayout) -> None:
        words, norms = tiles
        self._columns, self._rows, self._group = of.cols, of.rows, of.group
        self._on, self._device = on, words.device
        self._places = words.data_ptr(), norms.data_ptr()

    def is_of(self, words: torch.Tensor, norms: torch.Tensor) -> bool:
        """As `direct.Ready` says."""
        return self._places == (words.data_ptr(), norms.data_ptr())

    def multiply(
        self,
        x: torch.Tensor,
        words: torch.Tensor,
        norms: torch.Tensor,
        siblings: Siblings | None,
    ) -> torch.Tensor | None:
        """As `direct.Ready` says."""
        shape, group = x.shape, self._group
        columns = shape[-1] if shape else 0
        if columns != self._columns or x.dtype not in DTYPES or x.device != self._device:
            return None
        tokens = x.numel() // columns
        if not tokens:
            return None
        flat = x.reshape(tokens, columns).contiguous()
        quantise = siblings.quantise(x, self._places) if siblings else calls.quantise
        layer = layout.Tiles(words, norms)
        out = on_device.linear(self._on, flat, layer, self._rows, group, group, quantise)
        return out.view(*shape[:-1], self._rows)


def ready(words: torch.Tensor, norms: torch.Tensor, of: GroupLayout) -> Layer | None:
    """As `direct.ready` says."""
    on = support.launcher(words.device)
    if on is None:
        return None
    check_layer_in_tiles(words, norms, of.rows, of.group)
    return Layer(on, layout.Tiles(words, norms), of)


def route(experts: torch.Tensor, count: int, group: int) -> pairs.Routing:
    """What tq3::route does with real tensors."""
    check_route(experts, count, group)
    return pairs.route(experts, count, group)


def experts(
    x: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    order: torch.Tensor,
    jobs: torch.Tensor,
    rows: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    """What tq3::experts_tiled does with real tensors."""
    rotation = group if rotation is None else rotation
    check_tiled_experts(x, words, norms, order, jobs, rows, group, rotation)
    if not len(x):
        return x.new_empty(0, rows)
    layers, routing = layout.Tiles(words, norms), pairs.Routing(order, jobs)
    return pairs.multiply(launcher_of(x), x, layers, routing, rows, group, rotation)


def embedding(
    ids: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What tq3::embedding_tiled does with real tensors."""
    check_tiled_embedding(ids, words, norms, group, columns, dtype)
    chosen = ids.reshape(-1).long()
    codes = layout.rows_of(words, chosen).view(-1, group)
    of_rows = layout.norms_of(norms, chosen)
    found = looked_up.decode_codes(codes, of_rows, words.shape[2], group, columns, dtype)
    return found.view(*ids.shape, columns)


def launcher_of(x: torch.Tensor) -> Launcher:
    """The launcher of kernels for x. Raises ValueError where none run."""
    found = support.launcher(x.device)
    if found is None:
        expected = "a GPU that tq3's kernels run on; module.to() brings codes back from tiles"
        refuse("x.device", x.device, expected)
    return found


def _fake_linear(
    x: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    rows: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    check_tiled(x, words, norms, rows, group, group if rotation is None else rotation)
    return x.new_empty((*x.shape[:-1], rows))


def _fake_route(experts: torch.Tensor, count: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    check_route(experts, count, group)
    of_order, of_jobs = pairs.sizes(experts.shape[0], count, group)
    return experts.new_empty(of_order), experts.new_empty((of_jobs, 4), dtype=torch.int32)


def _fake_experts(
    x: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    order: torch.Tensor,
    jobs: torch.Tensor,
    rows: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    rotation = group if rotation is None else rotation
    check_tiled_experts(x, words, norms, order, jobs, rows, group, rotation)
    return x.new_empty((x.shape[0], rows))


def _fake_embedding(
    ids: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    check_tiled_embedding(ids, words, norms, group, columns, dtype)
    return norms.new_empty((*ids.shape, columns), dtype=dtype)


define(
    "linear_tiled(Tensor x, Tensor words, Tensor norms, int rows, int group,"
    " int? rotation=None) -> Tensor",
    linear,
    _fake_linear,
)
define(
    "route(Tensor experts, int count, int group) -> (Tensor order, Tensor jobs)",
    route,
    _fake_route,
)
define(
    "experts_tiled(Tensor x, Tensor words, Tensor norms, Tensor order, Tensor jobs, int rows,"
    " int group, int? rotation=None) -> Tensor",
    experts,
    _fake_experts,
)
define(
    "embedding_tiled(Tensor ids, Tensor words, Tensor norms, int group, int columns,"
    " ScalarType dtype) -> Tensor",
    embedding,
    _fake_embedding,
)
differentiate("embedding_tiled", no_gradient)
