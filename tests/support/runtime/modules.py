"""Packed modules with codes and norms in them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from support.runtime.layers import layer
from tq3.codec import reference
from tq3.format.layout import GroupLayout
from tq3.runtime.modules import PackedWeight

Weight = TypeVar("Weight", bound=PackedWeight)
Module = TypeVar("Module", bound=nn.Module)


def packed_weight(
    shape: tuple[int, ...],
    bits: int = 3,
    group: int = 128,
    kind: Any = PackedWeight,
    **options: Any,
) -> Any:
    """A random matrix, or stack of them, as codes and norms."""
    rng = np.random.default_rng(0)
    layout = GroupLayout(shape, bits, group)
    weights = rng.standard_normal((layout.rows, layout.cols), np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, group)
    module = kind(layout, **options)
    state = {"tq_packed": torch.from_numpy(packed), "tq_norms": torch.from_numpy(norms)}
    module.load_state_dict({k: v.reshape(getattr(module, k).shape) for k, v in state.items()})
    return module


def restored(weight: PackedWeight) -> torch.Tensor:
    """By the reference codec."""
    layout = weight.group_layout
    packed, norms = weight.tq_packed.flatten(0, -2), weight.tq_norms.flatten(0, -2)
    values = reference.decode(packed.numpy(), norms.numpy(), layout.bits, layout.group, layout.cols)
    return torch.from_numpy(values).reshape(layout.shape)


def filled(weight: Weight, seed: int = 0) -> Weight:
    """The module with codes and norms, as a host loads them."""
    layout = weight.group_layout
    packed, norms = layer(layout.rows, layout.groups_per_row, layout.bits, layout.group, seed)
    weight.tq_packed.data.copy_(packed.view(weight.tq_packed.shape))
    weight.tq_norms.data.copy_(norms.view(weight.tq_norms.shape))
    return weight


def tiled(module: Module) -> Module:
    """As hosts do it after loading."""
    for part in module.modules():
        if isinstance(part, PackedWeight):
            part.arrange()
            assert part.is_tiled
    return module
