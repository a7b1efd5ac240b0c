"""torch.ops.tq3: packed layers as operators that torch can trace and compile.

tq3::linear(Tensor x, Tensor packed, Tensor norms, int bits, int group, int? rotation=None)
    x (..., columns) times the transposed weight: (..., rows), in x's dtype.
    packed: (rows * n, group * bits / 8) uint8, or the same bytes in any shape
    norms: (rows, n) float32, n = ceil(columns / group)
    rotation: size of the Walsh-Hadamard blocks, where smaller than the group

tq3::experts(Tensor x, Tensor packed, Tensor norms, Tensor experts, int bits, int group,
             int? rotation=None)
    Row i of x (pairs, columns) through the packed layer experts[i]: (pairs, rows).
    packed: the bytes of all experts; norms: (number of experts, rows, n) float32
    experts: (pairs,) int64; only those that occur are read

tq3::embedding(Tensor ids, Tensor packed, Tensor norms, int bits, int group, int columns,
               ScalarType dtype)
    The rows `ids` of the decoded weight: (..., columns) of dtype, each value rounded once.
    ids: any shape, int64 or int32; packed and norms as for tq3::linear

A bias is added by the caller. Weights are constants; `tq3.runtime.gradient` has the gradients with
respect to x.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn, Protocol

import torch

from tq3.codec.compiled import unbroken
from tq3.format.layout import GroupLayout
from tq3.runtime import generic, rows
from tq3.runtime.arguments import check_embedding, check_experts, check_linear, refuse
from tq3.runtime.warning import warn

_library = torch.library.Library("tq3", "DEF")
_Operator = Callable[..., torch.Tensor] | Callable[..., tuple[torch.Tensor, torch.Tensor]]


def define(schema: str, real: _Operator, fake: _Operator) -> None:
    """Define an operator: what it does with real tensors, and with the shapes of others."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.needs_contiguous_strides,))
    _library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tq3::{name}", fake, lib=_library)


def differentiate(
    name: str, backward: Callable[..., Any], keep: Callable[..., None] | None = None
) -> None:
    """Say what the gradient of operator `name` is; keep: what of its arguments that needs."""
    torch.library.register_autograd(f"tq3::{name}", backward, setup_context=keep, lib=_library)


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    """What tq3::linear does with real tensors."""
    rotation = group if rotation is None else rotation
    check_linear(x, packed, norms, bits, group, rotation)
    path = path_for(x)
    if x.dim() == 2:
        return path.linear(x, packed, norms, bits, group, rotation)
    out = path.linear(x.reshape(-1, x.shape[-1]), packed, norms, bits, group, rotation)
    return reshaped(out, *x.shape[:-1], norms.shape[0])


def reshaped(out: torch.Tensor, *shape: int) -> torch.Tensor:
    """A new tensor in another shape. No view of it, which callers may not change in place where it
    has a gradient.
    """
    found: torch.Tensor = torch.ops.aten._unsafe_view(out, shape)
    return found


def experts(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    experts: torch.Tensor,
    bits: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    """What tq3::experts does with real tensors."""
    rotation = group if rotation is None else rotation
    check_experts(x, packed, norms, experts, bits, group, rotation)
    count, rows, n = norms.shape
    layers = packed.view(count, rows * n, group * bits // 8)
    out, path = x.new_empty(len(x), rows), path_for(x)
    chosen = experts.unique().tolist()
    if chosen and not 0 <= chosen[0] <= chosen[-1] < count:
        refuse("experts", f"{chosen[0]} to {chosen[-1]}", f"0 to {count - 1}")
    for expert in chosen:
        pairs = (experts == expert).nonzero()[:, 0]
        out[pairs] = path.linear(x[pairs], layers[expert], norms[expert], bits, group, rotation)
    return out


def embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What tq3::embedding does with real tensors. An id beyond the rows is torch's own error."""
    check_embedding(ids, packed, norms, bits, group, columns, dtype)
    chosen = ids.reshape(-1)
    codes = packed.view(len(norms), -1).index_select(0, chosen)
    found = rows.decode(codes, norms.index_select(0, chosen), bits, group, columns, dtype)
    return found.view(*ids.shape, columns)


class Path(Protocol):
    """A module that multiplies; x is (tokens, columns)."""

    def linear(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        norms: torch.Tensor,
        bits: int,
        group: int,
        rotation: int,
    ) -> torch.Tensor: ...

    def decode(
        self, packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int
    ) -> torch.Tensor: ...

    def multiplied_as(self, x: torch.Tensor) -> torch.dtype: ...

    def ready(self, packed: torch.Tensor, norms: torch.Tensor, layout: GroupLayout) -> Any: ...


def path_for(x: torch.Tensor) -> Path:
    """What multiplies where x is."""
    return _processor() if x.is_cpu else generic


@cache
def _processor() -> Path:
    try:
        with unbroken("tq3.runtime._linear"):
            from tq3.runtime import cpu  # noqa: PLC0415  absent where no C++ compiler was
    except ModuleNotFoundError:
        warn(
            "tq3 was installed without its compiled kernels: packed layers are decoded at each "
            "use, which is slow; install a C++ compiler and then tq3 anew"
        )
        return generic
    return cpu


def _fake_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    check_linear(x, packed, norms, bits, group, group if rotation is None else rotation)
    return x.new_empty((*x.shape[:-1], norms.shape[0]))


def _fake_experts(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    experts: torch.Tensor,
    bits: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    check_experts(x, packed, norms, experts, bits, group, group if rotation is None else rotation)
    return x.new_empty((x.shape[0], norms.shape[1]))


def _fake_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    check_embedding(ids, packed, norms, bits, group, columns, dtype)
    return norms.new_empty((*ids.shape, columns), dtype=dtype)


def no_gradient(ctx: object, *gradients: torch.Tensor) -> NoReturn:
    """Refuse a gradient of rows that are looked up: neither ids nor weights have one."""
    raise NotImplementedError(
        "packed embeddings of tq3 are constants, which have no gradient: freeze them, or restore "
        "the checkpoint with `tq3 restore` to train them"
    )


define(
    "linear(Tensor x, Tensor packed, Tensor norms, int bits, int group, int? rotation=None)"
    " -> Tensor",
    linear,
    _fake_linear,
)
define(
    "experts(Tensor x, Tensor packed, Tensor norms, Tensor experts, int bits, int group,"
    " int? rotation=None) -> Tensor",
    experts,
    _fake_experts,
)
define(
    "embedding(Tensor ids, Tensor packed, Tensor norms, int bits, int group, int columns,"
    " ScalarType dtype) -> Tensor",
    embedding,
    _fake_embedding,
)
differentiate("embedding", no_gradient)
