"""Kept convolutions on a processor on which torch has no arithmetic of their dtype.

There torch computes a depthwise convolution of 16 bits some fifty times slower than one of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
# Models take a filter's only input channel away, and functions that they give it to put it back.
VIEWS = {torch.Tensor.squeeze, torch.Tensor.unsqueeze}


def _is_emulated(name: str) -> bool:
    # Exactly what torch's own convolution asks; a build without oneDNN has no such operator.
    asked = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return asked is None or not asked()


# The dtypes whose arithmetic oneDNN, by which torch convolves, lacks on this processor.
EMULATED = frozenset(
    dtype
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"))
    if _is_emulated(name)
)


class Filter(torch.Tensor):
    """A convolution's weight, which float32 is convolved with where 16 bits are emulated.

    For all else it is the parameter that it shares memory with. A module's own forward is not the
    only place where it is read: Gated DeltaNet hands it to functions of its own.
    """

    # isinstance(filter, nn.Parameter), which `get_parameter` insists on.
    _is_param = True

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function in CONVOLUTIONS:
                return _convolve(function, arguments, options)
            result = function(*arguments, **options)
        return result.as_subclass(cls) if function in VIEWS else result


def _convolve(
    function: Callable[..., torch.Tensor], arguments: Sequence[Any], options: Mapping[str, Any]
) -> torch.Tensor:
    x = arguments[0] if arguments else options["input"]
    if x.device.type != "cpu" or x.dtype not in EMULATED:
        return function(*arguments, **options)
    wide = {name: _float(value) for name, value in options.items()}
    return function(*map(_float, arguments), **wide).to(x.dtype)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


class _Filtering(nn.Module):
    """A convolution that gives its weight as a Filter. Parameters and state stay plain."""

    @property
    def weight(self) -> torch.Tensor | None:
        weight = self._parameters.get("weight")
        return None if weight is None else weight.as_subclass(Filter)


# mypy knows no property in the place of an attribute.
class _Conv1d(_Filtering, nn.Conv1d):  # type: ignore[misc]
    pass


class _Conv2d(_Filtering, nn.Conv2d):  # type: ignore[misc]
    pass


class _Conv3d(_Filtering, nn.Conv3d):  # type: ignore[misc]
    pass


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: _Conv1d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
}


def convolve_in_float32(model: nn.Module) -> None:
    """Let the convolutions of a model compute so wherever their dtype is emulated."""
    for module in model.modules():
        kind = _KINDS.get(type(module))
        weight = module._parameters.get("weight")
        if kind is not None and weight is not None and weight.dtype in EMULATED:
            module.__class__ = kind
