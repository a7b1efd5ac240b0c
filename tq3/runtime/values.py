"""What a packed weight answers to code that takes it for the tensor in whose place it stands.

It tells its shape, its dtype, its device and what follows from these, all of the decoded weight.
What needs its values ends in a sentence; who has to have them calls `dequantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from tq3.errors import UsageError
from tq3.format.layout import GroupLayout

_NONE: Mapping[str, Any] = {}


class NoValues(UsageError, AttributeError):
    """Also an AttributeError: `hasattr`, and `getattr` with a default, may ask for anything."""


class WithoutValues(nn.Module):
    """A module in the place of a parameter.

    tensor: the name of the tensor in the checkpoint, for people
    """

    group_layout: GroupLayout
    tensor: str
    dtype: torch.dtype
    tq_packed: nn.Parameter
    requires_grad = False

    @property
    def device(self) -> torch.device:
        """The device that holds the codes."""
        return self.tq_packed.device

    @property
    def shape(self) -> torch.Size:
        """That of the decoded weight."""
        return torch.Size(self.group_layout.host_shape)

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return len(self.group_layout.shape)

    def dim(self) -> int:
        """The number of dimensions, as `torch.Tensor.dim` gives it."""
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The shape of the decoded weight, or the length of its dimension `dim`."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of weights."""
        return self.shape.numel()

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, to another device. A tensor of another dtype, it can't give."""
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            raise no_values(self)
        return super().to(*args, **kwargs)

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _OF_SHAPE_AND_DTYPE:
                return getattr(self._like_it(), name)
            if name in _OF_DEVICE:
                return getattr(torch.empty(0, dtype=self.dtype, device=self.device), name)
            if name in _OF_TENSORS:
                raise no_values(self) from None
            raise

    def _like_it(self) -> torch.Tensor:
        """A tensor that takes no memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def __setattr__(self, name: str, value: Any) -> None:
        # `weight.data = ...` would be an attribute that nothing reads: an edit lost in silence.
        if name == "data" or (name == "grad" and value is not None):
            raise no_values(self)
        super().__setattr__(name, value)

    @classmethod
    def __torch_function__(
        cls, function: Any, _: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NONE
    ) -> Any:
        """torch calls this for each of its functions that is given such a module for a tensor."""
        if function in _LIKE and args and isinstance(weight := args[0], WithoutValues):
            device = kwargs.get("device") or weight.device
            return function(weight._like_it(), *args[1:], **{**kwargs, "device": device})
        given = [*args, *kwargs.values()]
        parts = [part for each in given for part in (each if _is_sequence(each) else [each])]
        raise no_values(next(part for part in parts if isinstance(part, WithoutValues)))


def no_values(weight: WithoutValues) -> NoValues:
    """The sentence. A glob for `--keep` has the name for all layers and experts."""
    glob = ".".join("*" if part.isdigit() else part for part in weight.tensor.split("."))
    keep = f"; compress with --keep '{glob}' if the model's own code reads them" if glob else ""
    return NoValues(
        "the values of a packed weight can't be read or changed in place, and its rows neither "
        "added to nor cut",
        tensor=weight.tensor or None,
        fix="`weight.dequantize()` gives a copy of them; to change them, or to merge an adapter "
        "into them, make the model dense by `model.dequantize()`, or `tq3 restore` the checkpoint, "
        f"change the dense model, compress that again{keep}",
    )


def _is_sequence(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _refusing() -> Callable[..., NoReturn]:
    def operator(self: WithoutValues, *_: object) -> NoReturn:
        raise no_values(self)

    return operator


# What shape and dtype tell; a weight that nothing is computed from is dense, a leaf, and has no
# gradient.
_OF_SHAPE_AND_DTYPE = {
    *("element_size", "itemsize", "nbytes", "nelement", "ndimension", "layout", "stride"),
    *("is_complex", "is_contiguous", "is_floating_point", "is_quantized", "is_sparse"),
    *("grad", "grad_fn", "is_leaf"),
}
# Of the device alone, or new tensors there.
_OF_DEVICE = {
    *("get_device", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu"),
    *("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
}
_LIKE = {
    *(torch.empty_like, torch.full_like, torch.ones_like, torch.zeros_like),
    *(torch.rand_like, torch.randn_like),
}
# What copies, pickles and torch's own dispatch ask of any object.
_OF_ALL_OBJECTS = {"__bool__", "__deepcopy__", "__torch_dispatch__", "__torch_function__"}
_ORDER = {"__lt__", "__le__", "__gt__", "__ge__"}  # which any object has, and refuses otherwise
_OF_TENSORS = {
    name for name in dir(torch.Tensor) if name in _ORDER or not hasattr(WithoutValues, name)
} - _OF_ALL_OBJECTS
# A module has these as well, and would change itself.
_CASTS = {"bfloat16", "double", "float", "half", "type"}
# Python looks operators up in the class, and asks no __getattr__.
_OPERATORS = {name for name in _OF_TENSORS if name.startswith("__")}
for _name in sorted(
    _CASTS | {name for name in _OPERATORS if callable(getattr(torch.Tensor, name))}
):
    setattr(WithoutValues, _name, _refusing())
