"""Whether a call needs torch's dispatcher at all.

An operator that is defined in Python costs more in the dispatcher than a small layer takes. What it
is for, somebody must want: a compiler or tracer that sees operators instead of numbers, a gradient,
a mode or a transformation of torch, a profiler. Where nobody does, modules call what is behind the
operator, of a layer whose codes and norms were checked once.
"""

from __future__ import annotations

from typing import Protocol

import torch

from tq3.format.layout import GroupLayout
from tq3.runtime import ops, tiled
from tq3.runtime.siblings import Siblings


def _all_but(names: str) -> int:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    for name in names.split():
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return ~int(keys.raw_repr())


# torch has no public way to ask who watches, and may drop these names in any release. Then every
# call goes through the dispatcher, which takes longer and gives the same.
try:
    _keys_of = torch._C._dispatch_keys
    _keys_of_thread = torch._C._dispatch_tls_local_include_set
    _is_profiled = torch._C._autograd._profiler_enabled
    _is_in_function_mode = torch._C._is_torch_function_mode_enabled
    # Of other keys than these there are views that are still to be negated or conjugated, batches,
    # tensors without values, subclasses; and of a thread, modes and tracers.
    _OTHERS = _all_but(
        "CPU CUDA AutogradCPU AutogradCUDA AutocastCPU AutocastCUDA ADInplaceOrView BackendSelect"
    )
    _CAN_TELL = True
except AttributeError:
    _CAN_TELL = False


def is_unwatched(x: torch.Tensor) -> bool:
    """Whether nothing but a kernel would see an operator's call with x.

    False where this torch does not tell.
    """
    return _CAN_TELL and not (
        torch.compiler.is_compiling()
        or (x.requires_grad and torch.is_grad_enabled())
        or type(x) is not torch.Tensor
        or _is_in_function_mode()
        or _is_profiled()
        or (_keys_of(x).raw_repr() | _keys_of_thread().raw_repr()) & _OTHERS
    )


class Ready(Protocol):
    """A layer that can be multiplied at once. It keeps no codes: hosts may take them away."""

    def is_of(self, packed: torch.Tensor, norms: torch.Tensor) -> bool:
        """Whether it is the layer of these, that is, whether they lie where its own did."""

    def multiply(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        norms: torch.Tensor,
        siblings: Siblings | None,
    ) -> torch.Tensor | None:
        """(..., columns) -> (..., rows), as the operator; None for an x that is for the operator to
        take, or that is of another width or dtype and to be refused.
        """


def ready(packed: torch.Tensor, norms: torch.Tensor, layout: GroupLayout) -> Ready | None:
    """Codes and norms as they are stored, or in tiles, made ready; None where no kernels take them.

    Raises ValueError where the two are not of such a layer.
    """
    if (_keys_of(packed).raw_repr() | _keys_of(norms).raw_repr()) & _OTHERS:
        return None
    if packed.dtype == torch.int32:
        return tiled.ready(packed, norms, layout)
    found: Ready | None = ops.path_for(packed).ready(packed, norms, layout)
    return found
