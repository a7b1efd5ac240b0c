"""Packed layers as torch modules. They hold codes and norms, and know no host."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from tq3.runtime.cuda import ready
from tq3.runtime.cuda.layout import Tiles
from tq3.runtime.cuda.pairs import Routing
from tq3.runtime.siblings import Siblings
from tq3.runtime.values import no_values
from tq3.runtime.weight import PackedWeight

__all__ = [
    "PackedEmbedding",
    "PackedExperts",
    "PackedLinear",
    "PackedRows",
    "PackedWeight",
    "look_up_packed",
    "note_siblings",
    "unpack",
]


def _set(owner: nn.Module, name: str, value: Any) -> None:
    """As of any module. A parameter in the place of the packed weight makes the module what it once
    was; whatever else is put there has the errors of that.
    """
    if name == "weight" and not isinstance(value, PackedWeight):
        if not isinstance(value, nn.Parameter):
            found = torch.typename(value)
            raise TypeError(f"cannot assign {found!r} as 'weight' (torch.nn.Parameter expected)")
        del owner.weight
    nn.Module.__setattr__(owner, name, value)


def _delete(owner: nn.Module, name: str) -> None:
    """As of any module. Without the packed weight it is what it once was, less a parameter."""
    nn.Module.__delattr__(owner, name)
    if name == "weight":
        kind: Any = type(owner)
        owner.__class__ = kind.__bases__[0]


class PackedLinear(nn.Linear):
    """What nn.Linear computes, from a packed weight.

    It is one for whoever looks for such layers, as adapters do: they add to what it computes.
    Assign a parameter to `weight`, and it is an ordinary one.
    """

    weight: PackedWeight  # type: ignore[assignment]
    __setattr__, __delattr__ = _set, _delete

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.group_layout.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features), in x's dtype"""
        # Asked of the module, it would take longer than an operation of torch.
        y: torch.Tensor = self._modules["weight"](x)  # type: ignore[misc]
        try:
            bias = self._parameters["bias"]
        except KeyError:  # a replica of nn.DataParallel has none of its own
            bias = self.bias
        return y if bias is None else y + bias

    def reset_parameters(self) -> None:
        """Refused: what is packed is not initialised."""
        raise no_values(self.weight)

    def dequantize(self) -> torch.Tensor:
        """The decoded weight, of its dtype."""
        return self.weight.dequantize()

    @property
    def W_q(self) -> PackedWeight:
        """Who finds this calls `dequantize`: so PEFT learns the values for DoRA."""
        return self.weight


def note_siblings(model: nn.Module) -> None:
    """Tell packed layers which others they lie beside: whether these read the same input, they see
    when they are called.
    """
    for module in model.modules():
        found: dict[tuple[int, int, int], list[PackedWeight]] = {}
        for child in module.children():
            if isinstance(child, PackedLinear):
                layout = child.weight.group_layout
                form = layout.cols, layout.bits, layout.group
                found.setdefault(form, []).append(child.weight)
        for weights in found.values():
            siblings = Siblings() if len(weights) > 1 else None
            for weight in weights:
                weight.siblings = siblings


class PackedRows(PackedWeight):
    """A compressed matrix whose rows are looked up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: any shape -> (*ids.shape, columns) of `dtype`"""
        layout, parts = self.group_layout, (self.tq_packed, self.tq_norms)
        of_rows = layout.cols, self.dtype
        found: torch.Tensor
        if self.is_tiled:
            found = torch.ops.tq3.embedding_tiled(ids, *parts, layout.group, *of_rows)
        else:
            found = torch.ops.tq3.embedding(ids, *parts, layout.bits, layout.group, *of_rows)
        return found

    def _prepare_device(self, tiles: Tiles) -> None:
        ready.embedding(tiles, self.group_layout.group)


class PackedEmbedding(nn.Embedding):
    """What nn.Embedding looks up, from packed rows. Made by `look_up_packed`."""

    weight: PackedRows  # type: ignore[assignment]
    __setattr__, __delattr__ = _set, _delete

    @property
    def tq_norms(self) -> PackedEmbedding:
        """Itself: PEFT takes the owner of a parameter for the one whose name is without `.weight`,
        to tune prompts for the embeddings.
        """
        return self

    tq_packed = tq_norms

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: any shape -> (*ids.shape, embedding_dim)"""
        found: torch.Tensor = self.weight(ids)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As of any object, but that a class which is made here has no name to be found by."""
        kind = type(self)
        if kind is PackedEmbedding:
            return super().__reduce_ex__(protocol)
        return _unpickled, (kind.__bases__[0],), self.__dict__


def look_up_packed(embedding: nn.Embedding, weight: PackedRows) -> None:
    """Make an embedding look up its rows in `weight`.

    A class derived from nn.Embedding stays in charge: where it calls nn.Embedding's forward, to
    scale or to normalise the rows, it now calls PackedEmbedding's.
    """
    del embedding.weight
    embedding.weight = weight  # type: ignore[assignment]
    # As torch's own parametrisations do it: buffers, hooks and flags of the module stay.
    kind: Any = type(embedding)
    embedding.__class__ = _packed_class(kind)


def unpack(owner: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put an ordinary parameter in the place of a packed weight; its owner is what it once was."""
    delattr(owner, name)
    setattr(owner, name, parameter)


@cache
def _packed_class(kind: Any) -> type[PackedEmbedding]:
    if kind is nn.Embedding:
        return PackedEmbedding
    return type(f"Packed{kind.__name__}", (kind, PackedEmbedding), {})


def _unpickled(kind: Any) -> PackedEmbedding:
    found = _packed_class(kind)
    return found.__new__(found)


class PackedExperts(PackedWeight):
    """The same matrix of all experts, (experts, rows, columns)."""

    def route(self, experts: torch.Tensor) -> Routing:
        """Numbers of experts as kernels take them, to be found once for all stacks of a layer.

        For codes in tiles. experts: (pairs,) int64
        """
        layout = self.group_layout
        return Routing(*torch.ops.tq3.route(experts, layout.shape[0], layout.group))

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, experts: torch.Tensor | Routing
    ) -> torch.Tensor:
        """Row i of x goes through expert experts[i].  (pairs, columns) -> (pairs, rows)

        experts: their numbers, or what `route` makes of these where `is_tiled`
        """
        self._check_inputs(x)
        (count, rows, _), group = self.group_layout.shape, self.group_layout.group
        codes = x, self.tq_packed
        y: torch.Tensor
        if self.is_tiled:
            routing = experts if isinstance(experts, Routing) else self.route(experts)
            y = torch.ops.tq3.experts_tiled(*codes, self.tq_norms, *routing, rows, group)
        else:
            norms = self.tq_norms.view(count, rows, -1)
            y = torch.ops.tq3.experts(*codes, norms, experts, self.group_layout.bits, group)
        return y

    def _prepare_device(self, tiles: Tiles) -> None:
        ready.experts(tiles, self.group_layout.group, self.dtype)
