"""Weights that are held decoded, for modules that read their weights themselves.

Such a module has an ordinary parameter. The codes are kept beside it, to be saved for as long as
they are what the parameter was made of.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import nn

from tq3.runtime.arguments import DTYPES
from tq3.runtime.weight import PackedWeight


def hold_decoded(owner: nn.Module, name: str) -> PackedWeight:
    """Put the decoded weight in the place of the PackedWeight `owner.name`, which is returned.

    On meta, as where weights are offloaded, the parameter is on meta, too.
    """
    weight: PackedWeight = getattr(owner, name)
    dense = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    if not weight.tq_packed.is_meta:
        dense = weight.dequantize()
    delattr(owner, name)
    setattr(owner, name, nn.Parameter(dense))
    return weight


def describes(weight: PackedWeight, values: torch.Tensor) -> bool:
    """Whether `values` are those of the codes, as they are or after casts of the model.

    Compared by value: an edit may be a step of an optimizer, another parameter, or new data in the
    same one. A cast to a narrower dtype and back leaves rounded values. The codes say more than
    those, so they are no edit. Two casts round as any number of them do.
    """
    exact, found = weight.decoded().cpu(), values.detach().cpu()
    return found.shape == exact.shape and any(
        torch.equal(exact.to(first).to(second).to(found.dtype), found)
        for first, second in product((found.dtype, *DTYPES), DTYPES)
    )
