"""What a packed weight answers to code that takes it for the tensor in whose place it stands.

It tells its shape, its dtype and its device. What needs its values ends in a sentence; who has to
have them calls `dequantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from tq3.errors import UsageError
from tq3.format.layout import GroupLayout


class NoValues(UsageError, AttributeError):
    """Also an AttributeError: `hasattr`, and `getattr` with a default, may ask for anything."""


class WithoutValues(nn.Module):
    """A module in the place of a parameter.

    tensor: the name of the tensor in the checkpoint, for people
    """

    layout: GroupLayout
    tensor: str
    requires_grad = False

    @property
    def shape(self) -> torch.Size:
        """That of the decoded weight."""
        return torch.Size(self.layout.shape)

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return len(self.layout.shape)

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
            if name in _OF_TENSORS:
                raise no_values(self) from None
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        # `weight.data = ...` would be an attribute that nothing reads: an edit lost in silence.
        if name in ("data", "grad"):
            raise no_values(self)
        super().__setattr__(name, value)

    @classmethod
    def __torch_function__(
        cls, _: object, __: object, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> NoReturn:
        """torch calls this for each of its functions that is given such a module for a tensor."""
        given = [*args, *(kwargs or {}).values()]
        parts = [part for each in given for part in (each if _is_sequence(each) else [each])]
        raise no_values(next(part for part in parts if isinstance(part, WithoutValues)))


def no_values(weight: WithoutValues) -> NoValues:
    """The sentence. A glob for `--keep` has the name for all layers and experts."""
    glob = ".".join("*" if part.isdigit() else part for part in weight.tensor.split("."))
    keep = f"compress with --keep '{glob}' if the model's own code reads them; " if glob else ""
    return NoValues(
        "the values of a packed weight can't be read or changed in place, and its rows neither "
        "added to nor cut",
        tensor=weight.tensor or None,
        fix=f"{keep}to change them, or to merge an adapter into them, `tq3 restore` the "
        "checkpoint, change the dense model, compress that again",
    )


def _is_sequence(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _refusing() -> Callable[..., NoReturn]:
    def operator(self: WithoutValues, *_: object) -> NoReturn:
        raise no_values(self)

    return operator


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
