"""Packed layers as torch modules. They hold codes and norms, and know no host.

The child that stands in a weight's place owns `tq_packed` and `tq_norms`, so that the keys of a
state dict are the names of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from tq3.errors import UsageError
from tq3.format.layout import NORMS, PACKED, GroupLayout
from tq3.runtime import ops, rows, tiled
from tq3.runtime.cuda import layout as in_tiles
from tq3.runtime.cuda import support

__all__ = [
    "PackedEmbedding",
    "PackedExperts",
    "PackedLinear",
    "PackedRows",
    "PackedWeight",
    "hold_decoded",
    "look_up_packed",
    "ops",
    "tiled",
]


class PackedWeight(nn.Module):
    """A compressed matrix, or stack of matrices, in the place of its parameter.

    stacked: codes and norms have a dimension for the matrices, where the checkpoint has flat rows
    dtype: that of the parameter, for models that ask a weight what activations it wants

    On a GPU that has kernels, codes and norms lie in tiles, in the same parameters; state dicts
    have them as the checkpoint does.
    """

    tq_packed: nn.Parameter
    tq_norms: nn.Parameter
    requires_grad = False

    def __init__(
        self,
        layout: GroupLayout,
        *,
        stacked: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.dtype = layout, dtype
        infos = layout.tensors("")
        for info, name, kind in zip(
            infos, (PACKED, NORMS), (torch.uint8, torch.float32), strict=True
        ):
            rows, width = info.shape
            shape = (layout.shape[0], rows // layout.shape[0], width) if stacked else (rows, width)
            empty = torch.empty(shape, dtype=kind, device=device)
            self.register_parameter(name[1:], nn.Parameter(empty, requires_grad=False))
        self._is_stacked = stacked
        self.register_state_dict_post_hook(_as_in_the_checkpoint)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_as_it_is_loaded)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_as_it_is_read)  # type: ignore[no-untyped-call]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the decoded weight."""
        return self.layout.shape

    def size(self) -> torch.Size:
        """The same, for who asks as of a tensor."""
        return torch.Size(self.layout.shape)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.tq_packed.device

    @property
    def data(self) -> NoReturn:
        """What changes a weight asks for this, such as `resize_token_embeddings`."""
        raise UsageError(
            "the values of a packed weight can't be read or changed in place, and its rows neither "
            "added to nor cut",
            fix="`tq3 restore` the checkpoint, change the dense model, compress that again",
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and norms."""
        return self.tq_packed.nbytes + self.tq_norms.nbytes

    @property
    def is_tiled(self) -> bool:
        """Whether codes and norms lie as kernels of a GPU read them."""
        return self.tq_packed.dtype == torch.int32

    def arrange(self) -> None:
        """Bring codes and norms into tiles, where their device has kernels that read those."""
        if self.is_tiled or support.launcher(self.device) is None:
            return
        layout = self.layout
        norms = self.tq_norms.detach().view(*layout.shape[:-1], layout.groups_per_row)
        self._hold(*in_tiles.repack(self.tq_packed.detach(), norms, layout.bits, layout.group))

    def stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and norms as the checkpoint has them."""
        packed, norms = self.tq_packed.detach(), self.tq_norms.detach()
        if not self.is_tiled:
            return packed, norms
        layout, tiles = self.layout, in_tiles.Tiles(packed, norms)
        packed, norms = in_tiles.restore(tiles, layout.shape[-2], layout.groups_per_row)
        if self._is_stacked:
            return packed, norms
        return packed.view(-1, layout.group_bytes), norms.view(layout.rows, -1)

    def _hold(self, packed: torch.Tensor, norms: torch.Tensor) -> None:
        # In the same parameters: another module may share them.
        self.tq_packed.data, self.tq_norms.data = packed, norms

    def decoded(self) -> torch.Tensor:
        """The weight as the codec restores it, float32, on the same device."""
        layout = self.layout
        packed, norms = (part.cpu() for part in self.stored())
        norms = norms.reshape(layout.rows, layout.groups_per_row)
        weight = rows.decode(packed, norms, layout.bits, layout.group, layout.cols, torch.float32)
        return weight.reshape(layout.shape).to(self.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., columns) -> (..., rows)

        Called as a module, so that a host which moves weights about sees when they are used.
        """
        layout, parts = self.layout, (self.tq_packed, self.tq_norms)
        y: torch.Tensor
        if self.is_tiled:
            y = torch.ops.tq3.linear_tiled(x, *parts, layout.rows, layout.group)
        else:
            y = torch.ops.tq3.linear(x, *parts, layout.bits, layout.group)
        return y

    def extra_repr(self) -> str:
        """The shape and the width, for `print(model)`."""
        return f"{self.layout.shape}, bits={self.layout.bits}, group={self.layout.group}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Norms stay float32 where a model is cast; codes are not floating point. Both come to lie
        as the kernels of their new device read them.
        """
        self._hold(*self.stored())
        norms = self.tq_norms.detach()
        self.dtype = fn(norms.new_empty(0, dtype=self.dtype)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.tq_norms.dtype != torch.float32:
            self._hold(self.tq_packed.data, norms.to(self.tq_norms.device))
        self.arrange()
        return self


def _as_in_the_checkpoint(weight: PackedWeight, state: dict[str, Any], prefix: str, _: Any) -> None:
    if weight.is_tiled:
        # In the host's memory: a GPU may not hold all codes twice.
        packed, norms = (part.cpu() for part in weight.stored())
        state[prefix + PACKED[1:]], state[prefix + NORMS[1:]] = packed, norms


def _as_it_is_loaded(weight: PackedWeight, *_: Any) -> None:
    weight._hold(*weight.stored())


def _as_it_is_read(weight: PackedWeight, _: Any) -> None:
    weight.arrange()


class PackedLinear(nn.Module):
    """What nn.Linear computes, from a packed weight."""

    bias: nn.Parameter | None

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.layout.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features), in x's dtype"""
        y: torch.Tensor = self.weight(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As nn.Linear says it."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


class PackedRows(PackedWeight):
    """A compressed matrix whose rows are looked up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: any shape -> (*ids.shape, columns) of `dtype`"""
        layout, parts = self.layout, (self.tq_packed, self.tq_norms)
        of_rows = layout.cols, self.dtype
        found: torch.Tensor
        if self.is_tiled:
            found = torch.ops.tq3.embedding_tiled(ids, *parts, layout.group, *of_rows)
        else:
            found = torch.ops.tq3.embedding(ids, *parts, layout.bits, layout.group, *of_rows)
        return found


class PackedEmbedding(nn.Embedding):
    """What nn.Embedding looks up, from packed rows. Made by `look_up_packed`."""

    weight: PackedRows  # type: ignore[assignment]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: any shape -> (*ids.shape, embedding_dim)"""
        found: torch.Tensor = self.weight(ids)
        return found


def look_up_packed(embedding: nn.Embedding, weight: PackedRows) -> None:
    """Make an embedding look up its rows in `weight`.

    A class derived from nn.Embedding stays in charge: where it calls nn.Embedding's forward, to
    scale or to normalise the rows, it now calls PackedEmbedding's.
    """
    del embedding.weight
    embedding.weight = weight  # type: ignore[assignment]
    # As torch's own parametrisations do it: buffers, hooks and flags of the module stay.
    embedding.__class__ = _packed_class(type(embedding))


def _packed_class(kind: type[nn.Embedding]) -> type[PackedEmbedding]:
    if kind is nn.Embedding:
        return PackedEmbedding
    return type(f"Packed{kind.__name__}", (kind, PackedEmbedding), {})


class PackedExperts(PackedWeight):
    """The same matrix of all experts, (experts, rows, columns)."""

    def forward(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Row i of x goes through expert experts[i].  (pairs, columns) -> (pairs, rows)"""
        (count, rows, _), group = self.layout.shape, self.layout.group
        codes = x, self.tq_packed
        y: torch.Tensor
        if self.is_tiled:
            y = torch.ops.tq3.experts_tiled(*codes, self.tq_norms, experts, rows, group)
        else:
            norms = self.tq_norms.view(count, rows, -1)
            y = torch.ops.tq3.experts(*codes, norms, experts, self.layout.bits, group)
        return y


def hold_decoded(owner: nn.Module, name: str) -> None:
    """Put the decoded weight in the place of the PackedWeight `owner.name`.

    For modules that read their weights themselves. State dicts still have the codes and norms.
    """
    weight = getattr(owner, name)
    dense = weight.decoded().to(weight.dtype)
    delattr(owner, name)
    setattr(owner, name, nn.Parameter(dense, requires_grad=False))
    owner.register_state_dict_post_hook(partial(_as_stored, name, weight))


def _as_stored(
    name: str, weight: PackedWeight, _: nn.Module, state: dict[str, Any], prefix: str, __: Any
) -> None:
    del state[prefix + name]
    state[prefix + name + PACKED], state[prefix + name + NORMS] = weight.stored()
