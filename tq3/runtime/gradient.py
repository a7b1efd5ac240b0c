"""Gradients of packed layers with respect to their input: that of the output, times the weights.

tq3::linear_gradient(Tensor g, Tensor packed, Tensor norms, int bits, int group,
                     SymInt columns, int? rotation)
tq3::experts_gradient(Tensor g, Tensor packed, Tensor norms, Tensor experts, int bits, int group,
                      SymInt columns, int? rotation)
tq3::linear_tiled_gradient(Tensor g, Tensor words, Tensor norms, int rows, int group,
                           SymInt columns, int? rotation)
tq3::experts_tiled_gradient(Tensor g, Tensor words, Tensor norms, Tensor order, Tensor jobs,
                            int rows, int group, SymInt columns, int? rotation)
    g (..., rows) times the weight: (..., columns), in g's dtype. Other arguments are those of the
    operator without `_gradient`.

Weights are decoded some rows at a time, as the format defines them, and forgotten: for a backward
nothing is kept but codes and norms, which are there anyway. So this is the gradient of the decoded
layer; what the forward rounds of levels and activations (docs/kernels.md) has none. An operator and
its gradient are each other's gradients. Codes and norms are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tq3.runtime import arguments, generic, ops, tiled
from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda import many
from tq3.runtime.cuda.layout import TILE, Tiles

# Rows `first` to `last` of a layer in rotated space.  (last - first, n * group)
Decode = Callable[[int, int], torch.Tensor]


def linear(
    g: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    rotation: int | None,
) -> torch.Tensor:
    """What tq3::linear_gradient does with real tensors."""
    rows, n = norms.shape
    packed = packed.view(rows * n, group * bits // 8)
    path = ops.path_for(g)

    def decode(first: int, last: int) -> torch.Tensor:
        return path.decode(packed[first * n : last * n], norms[first:last], bits, group)

    return multiply(
        g, decode, path.multiplied_as(g), group, columns, rotation, generic.TILE_WEIGHTS
    )


def linear_tiled(
    g: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    _: int,
    group: int,
    columns: int,
    rotation: int | None,
) -> torch.Tensor:
    """What tq3::linear_tiled_gradient does with real tensors."""
    on, width = tiled.launcher_of(g), -(-columns // group) * group

    def decode(first: int, last: int) -> torch.Tensor:
        piece = slice(first // TILE, -(-last // TILE))
        weights = g.new_empty(last - first, width)
        many.decode(on, Tiles(words[piece], norms[piece]), group, weights)
        return weights

    return multiply(g, decode, g.dtype, group, columns, rotation, on.crossing.piece_weights)


def multiply(
    g: torch.Tensor,
    decode: Decode,
    dtype: torch.dtype,
    group: int,
    columns: int,
    rotation: int | None,
    most: int,
) -> torch.Tensor:
    """(..., rows) times the weights that `decode` gives: (..., columns), in g's dtype.

    dtype: of the products; their sums over tiles of rows are float32
    most: weights decoded at a time, in whole tiles of 32 rows; also values rotated at a time
    """
    tokens = g.reshape(-1, g.shape[-1]).to(dtype)
    width = -(-columns // group) * group
    rotated = g.new_zeros(len(tokens), width, dtype=torch.float32)
    step = max(1, most // (width * TILE)) * TILE
    for first in range(0, g.shape[-1], step):
        part = tokens[:, first : first + step]
        rotated += part @ decode(first, first + part.shape[1]).to(dtype)
    out = g.new_empty(len(tokens), columns)
    step = max(1, most // width)
    for first in range(0, len(tokens), step):
        some = slice(first, first + step)
        out[some] = rotate_back(rotated[some], group, rotation or group)[:, :columns]
    return ops.reshaped(out, *g.shape[:-1], columns)


def rotate_back(x: torch.Tensor, group: int, rotation: int) -> torch.Tensor:
    """D1 H D2 of each group, which undoes `generic.rotate`.  (tokens, n * group) float32"""
    first, second = fixed.signs(group, x.device)
    groups = x.reshape(len(x), -1, group)
    back: torch.Tensor = fixed.transform(groups * second, rotation) * (first / rotation**0.5)
    return back.reshape(x.shape)


def experts(
    g: torch.Tensor, packed: torch.Tensor, norms: torch.Tensor, experts: torch.Tensor, *others: Any
) -> torch.Tensor:
    """What tq3::experts_gradient does with real tensors."""
    return _of_each(linear, g, packed.view(len(norms), -1), norms, experts, *others)


def experts_tiled(
    g: torch.Tensor,
    words: torch.Tensor,
    norms: torch.Tensor,
    order: torch.Tensor,
    jobs: torch.Tensor,
    *others: Any,
) -> torch.Tensor:
    """What tq3::experts_tiled_gradient does with real tensors."""
    placed = torch.empty(len(g), dtype=torch.int64)
    for expert, first, end, _ in jobs.tolist():
        placed[first:end] = expert
    experts = placed.to(g.device)
    if len(order):
        experts = torch.empty_like(experts).index_copy_(0, order, experts)
    return _of_each(linear_tiled, g, words, norms, experts, *others)


def _of_each(
    of_one: Callable[..., torch.Tensor],
    g: torch.Tensor,
    codes: torch.Tensor,
    norms: torch.Tensor,
    experts: torch.Tensor,
    *others: Any,
) -> torch.Tensor:
    """Row i of g through expert experts[i]. The host waits for the device to know which occur."""
    *_, columns, _ = others
    out = g.new_empty(len(g), columns)
    for expert in experts.unique().tolist():
        pairs = (experts == expert).nonzero()[:, 0]
        out[pairs] = of_one(g[pairs], codes[expert], norms[expert], *others)
    return out


def _define(
    name: str,
    layer: str,
    check: Callable[..., None],
    rows_of: Callable[..., int],
    real: Callable[..., torch.Tensor],
) -> None:
    """Define tq3::`name`_gradient. It and tq3::`name` become each other's gradients.

    layer: what both take in a schema behind their first argument, up to the group
    """

    def fake(g: torch.Tensor, *others: Any) -> torch.Tensor:
        *of_layer, columns, rotation = others
        rows = rows_of(*of_layer)
        if g.dim() == 0 or g.shape[-1] != rows:
            arguments.refuse("g.shape", tuple(g.shape), f"(..., {rows})")
        x = g.new_empty(()).expand(*g.shape[:-1], columns)
        check(x, *of_layer, rotation or of_layer[-1])
        return g.new_empty(x.shape)

    def checked(g: torch.Tensor, *others: Any) -> torch.Tensor:
        fake(g, *others)
        return real(g, *others)

    ops.define(
        f"{name}_gradient(Tensor g, {layer}, SymInt columns, int? rotation) -> Tensor",
        checked,
        fake,
    )
    _pair(name, layer.count("Tensor"))


def _pair(name: str, n_tensors: int) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, *others = inputs
        ctx.columns = x.shape[-1]
        ctx.save_for_backward(*others[:n_tensors])
        ctx.numbers = others[n_tensors:]

    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *numbers, rotation = ctx.numbers
        of_layer = *ctx.saved_tensors, *numbers
        return _of_input(ctx, f"{name}_gradient", g, *of_layer, ctx.columns, rotation)

    def again(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *numbers, _, rotation = ctx.numbers
        return _of_input(ctx, name, g, *ctx.saved_tensors, *numbers, rotation)

    ops.differentiate(name, backward, keep)
    ops.differentiate(f"{name}_gradient", again, keep)


def _of_input(ctx: Any, operator: str, *given: Any) -> tuple[torch.Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:]):
        raise NotImplementedError(
            "codes and norms of tq3 layers are constants without a gradient: freeze them and train "
            "an adapter, or restore the checkpoint with `tq3 restore` to train its weights"
        )
    found = getattr(torch.ops.tq3, operator)(*given)
    return found, *[None] * (len(ctx.needs_input_grad) - 1)


_CODES, _TILES = "Tensor packed, Tensor norms", "Tensor words, Tensor norms"
_define(
    "linear",
    f"{_CODES}, int bits, int group",
    arguments.check_linear,
    lambda packed, norms, *_: norms.shape[0],
    linear,
)
_define(
    "experts",
    f"{_CODES}, Tensor experts, int bits, int group",
    arguments.check_experts,
    lambda packed, norms, *_: norms.shape[1],
    experts,
)
_define(
    "linear_tiled",
    f"{_TILES}, int rows, int group",
    arguments.check_tiled,
    lambda words, norms, rows, _: rows,
    linear_tiled,
)
_define(
    "experts_tiled",
    f"{_TILES}, Tensor order, Tensor jobs, int rows, int group",
    arguments.check_tiled_experts,
    lambda words, norms, order, jobs, rows, _: rows,
    experts_tiled,
)
