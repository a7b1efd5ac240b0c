"""A packed weight as a torch module: codes and norms, their dtypes, and how they lie in memory.

It stands in the place of the parameter and owns `tq_packed` and `tq_norms`, so that the keys of a
state dict are the names of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tq3.errors import UsageError
from tq3.format.layout import NORMS, PACKED, GroupLayout
from tq3.runtime import direct, gradient, rows  # noqa: F401  gradient: torch.ops.tq3, all of it
from tq3.runtime.arguments import DTYPES, refuse
from tq3.runtime.cuda import layout as in_tiles
from tq3.runtime.cuda import ready, support
from tq3.runtime.direct import Ready, is_unwatched
from tq3.runtime.siblings import Siblings
from tq3.runtime.values import WithoutValues


class Codes(nn.Parameter):
    """Constants: whoever wants to train them is told what to do instead."""

    def requires_grad_(self, requires_grad: bool = True) -> Codes:
        """Accept False, as of any tensor; codes and norms have no gradient."""
        if requires_grad:
            raise UsageError(
                "codes and norms of packed weights are constants that can't be trained",
                fix="train an adapter beside them, such as LoRA, or `tq3 restore` the checkpoint",
            )
        super().requires_grad_(False)
        return self


class Norms(Codes):
    """Norms are float32 whatever the dtype of their model.

    So whoever casts what is floating point leaves them alone, and who takes the first parameter
    that is floating point for the model's dtype finds another one.
    """

    def is_floating_point(self) -> bool:
        """No: see above."""
        return False


class PackedWeight(WithoutValues):
    """A compressed matrix, or stack of matrices, in the place of its parameter.

    stacked: codes and norms have a dimension for the matrices, where the checkpoint has flat rows
    dtype: that of the parameter, for models that ask a weight what activations it wants
    tensor: the name in the checkpoint, for people

    On a GPU that has kernels, codes and norms lie in tiles, in the same parameters; state dicts
    have them as the checkpoint does.
    """

    tq_packed: nn.Parameter
    tq_norms: nn.Parameter
    # Other layers that may read the same input.
    siblings: Siblings | None = None
    _ready: Ready | None = None

    def __init__(
        self,
        layout: GroupLayout,
        *,
        stacked: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        tensor: str = "",
    ) -> None:
        super().__init__()
        self.group_layout, self.dtype, self.tensor = layout, dtype, tensor
        infos = layout.tensors("")
        for info, name, kind in zip(
            infos, (PACKED, NORMS), (torch.uint8, torch.float32), strict=True
        ):
            shape = (layout.shape[0], -1, info.shape[-1]) if stacked else info.shape
            empty = torch.empty(info.shape, dtype=kind, device=device).view(shape)
            self.register_parameter(name[1:], nn.Parameter(empty, requires_grad=False))
        self._is_stacked = stacked
        self.register_state_dict_post_hook(_as_in_the_checkpoint)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; hosts call this, too, to replace one by theirs."""
        super().register_parameter(name, param)
        self._mark()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()
        self.arrange()

    def _mark(self) -> None:
        # In place: another module may share them. Hosts let what is floating point be trained.
        for name, kind in ((PACKED, Codes), (NORMS, Norms)):
            parameter = self._parameters.get(name[1:])
            if parameter is not None:
                parameter.__class__ = kind
                parameter.requires_grad = False

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and norms."""
        return self.tq_packed.nbytes + self.tq_norms.nbytes

    @property
    def is_tiled(self) -> bool:
        """Whether codes and norms lie as kernels of a GPU read them."""
        return self.tq_packed.dtype == torch.int32

    def arrange(self) -> None:
        """Bring codes and norms into tiles where their device has kernels that read those, out of
        them where it has none, as after unpickling what lay elsewhere.

        The device then has all that calls with activations of `dtype` ask it for, so that a CUDA
        graph may hold the first one.
        """
        has_kernels, layout = support.launcher(self.device) is not None, self.group_layout
        if self.is_tiled and not has_kernels:
            self._hold(*self.stored())
        if has_kernels and not self.is_tiled:
            norms = self.tq_norms.detach().view(*layout.shape[:-1], layout.groups_per_row)
            self._hold(*in_tiles.repack(self.tq_packed.detach(), norms, layout.bits, layout.group))
        if has_kernels:
            self._prepare_device(in_tiles.Tiles(self.tq_packed.detach(), self.tq_norms.detach()))

    def _prepare_device(self, tiles: in_tiles.Tiles) -> None:
        ready.linear(tiles, self.group_layout.group, self.dtype)

    def stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and norms as the checkpoint has them."""
        packed, norms = self.tq_packed.detach(), self.tq_norms.detach()
        if not self.is_tiled:
            return packed, norms
        layout, tiles = self.group_layout, in_tiles.Tiles(packed, norms)
        packed, norms = in_tiles.restore(tiles, layout.shape[-2], layout.groups_per_row)
        if self._is_stacked:
            return packed, norms
        of_packed, of_norms = layout.tensors("")
        return packed.view(of_packed.shape), norms.view(of_norms.shape)

    def _hold(self, packed: torch.Tensor, norms: torch.Tensor) -> None:
        # In the same parameters: another module may share them.
        self.tq_packed.data, self.tq_norms.data = packed, norms
        self.__dict__["_ready"] = None

    def decoded(self) -> torch.Tensor:
        """The weight as hosts have it, as the codec restores it, float32, on the same device."""
        layout = self.group_layout
        packed, norms = (part.cpu() for part in self.stored())
        norms = norms.reshape(layout.rows, layout.groups_per_row)
        weight = rows.decode(packed, norms, layout.bits, layout.group, layout.cols, torch.float32)
        weight = weight.reshape(layout.shape)
        return (weight.mT.contiguous() if layout.transposed else weight).to(self.device)

    def dequantize(self) -> torch.Tensor:
        """The decoded weight, of its dtype: a new tensor at each call."""
        return self.decoded().to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., columns) -> (..., rows)

        Called as a module, so that a host which moves weights about sees when they are used.
        """
        layout, (packed, norms) = self.group_layout, self._parts()
        y: torch.Tensor | None
        if is_unwatched(x):
            layer = self._ready
            if layer is None or not layer.is_of(packed, norms):
                layer = self.__dict__["_ready"] = direct.ready(packed, norms, layout)
            if layer is not None:
                y = layer.multiply(x, packed, norms, self.siblings)
                if y is not None:
                    return y
        self._check_inputs(x)
        if packed.dtype == torch.int32:
            y = torch.ops.tq3.linear_tiled(x, packed, norms, layout.rows, layout.group)
        else:
            y = torch.ops.tq3.linear(x, packed, norms, layout.bits, layout.group)
        return y

    def _check_inputs(self, x: torch.Tensor) -> None:
        # Operators know how many groups a row has, but not how much of the last one is padding.
        columns = self.group_layout.cols
        if x.shape[-1:] != (columns,):
            what = f"{self.tensor}: x.shape" if self.tensor else "x.shape"
            refuse(what, x.shape, f"(..., {columns})")

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Asked of the module, each would take longer than an operation of torch.
        parts: dict[str, Any] = self._parameters
        try:
            return parts["tq_packed"], parts["tq_norms"]
        except KeyError:  # a replica of nn.DataParallel has none of its own
            return self.tq_packed, self.tq_norms

    def extra_repr(self) -> str:
        """The shape and the width, for `print(model)`."""
        layout = self.group_layout
        turned = ", transposed" if layout.transposed else ""
        return f"{layout.shape}, bits={layout.bits}, group={layout.group}{turned}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Norms stay float32 where a model is cast; codes are not floating point. Both come to lie
        as the kernels of their new device read them.
        """
        dtype = fn(self.tq_norms.detach().new_empty(0, dtype=self.dtype)).dtype
        if dtype not in DTYPES:
            raise UsageError(
                "packed layers take no activations of this dtype",
                tensor=self.tensor or None,
                found=dtype,
                expected=", ".join(map(str, DTYPES)),
                fix="cast the model to one of these: a part of it may have been cast already",
            )
        self._hold(*self.stored())
        norms, self.dtype = self.tq_norms.detach(), dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark()
        if self.tq_norms.dtype != torch.float32:
            # By who asks no parameter what it is.
            self._hold(self.tq_packed.data, norms.to(self.tq_norms.device))
        self.arrange()
        return self


def _as_in_the_checkpoint(weight: PackedWeight, state: dict[str, Any], prefix: str, _: Any) -> None:
    if weight.is_tiled:
        # In the host's memory: a GPU may not hold all codes twice.
        packed, norms = (part.cpu() for part in weight.stored())
        state[prefix + PACKED[1:]], state[prefix + NORMS[1:]] = packed, norms


def _before_loading(weight: PackedWeight, *_: Any) -> None:
    weight._hold(*weight.stored())


def _after_loading(weight: PackedWeight, _: Any) -> None:
    weight.arrange()
