"""What a layer will ask its device for, got when the layer is brought there.

Then no call of it compiles, loads or computes anything for the first time, and a CUDA graph can
hold each of them.
"""

from __future__ import annotations

from functools import cache

import torch

from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda import linear as on_device
from tq3.runtime.cuda import pairs, support
from tq3.runtime.cuda.calls import DTYPES
from tq3.runtime.cuda.crossings import Crossing
from tq3.runtime.cuda.launches import Call
from tq3.runtime.cuda.layout import UNIT, Tiles

# Numbers of tokens, or pairs, among which each instance that any number asks for is asked for.
TOKENS = (1, *(n << i for i in range(16) for n in (2, 3)))


def linear(layer: Tiles, group: int, dtype: torch.dtype) -> None:
    """Have kernels and constants for activations of `dtype`. layer: of `layout.repack`"""
    _load(layer, group, dtype)
    embedding(layer, group)
    fixed.factors(group, group, layer.words.device)


def experts(layers: Tiles, group: int, dtype: torch.dtype) -> None:
    """Make experts ready: several layers of one shape, as `layout.repack` stacks them."""
    _load(layers, group, dtype)
    fixed.signs(group, layers.words.device)
    pairs.turns(len(layers.words), layers.words.device)


def embedding(layer: Tiles, group: int) -> None:
    """The same where rows are looked up: torch does that, by constants."""
    device, bits = layer.words.device, layer.words.shape[-3]
    fixed.signs(group, device)
    fixed.codebook(bits, group, device)


def _load(layer: Tiles, group: int, dtype: torch.dtype) -> None:
    on = support.launcher(layer.words.device)
    # Activations of other dtypes are refused when they come.
    if on is not None and dtype in DTYPES:
        for kernel, instance in _instances(
            on.processors, on.shared_bytes, on.crossing, layer.words.shape, group, dtype
        ):
            on.load(kernel, instance)


@cache
def _instances(
    processors: int,
    shared_bytes: int,
    crossing: Crossing,
    shape: torch.Size,
    group: int,
    dtype: torch.dtype,
) -> tuple[tuple[str, str], ...]:
    """What a layer, or several, whose words have this shape would ask a device of so many
    multiprocessors, with so much shared memory each and this crossing, for.
    """
    *lead, tiles, units, _, lanes, _ = shape
    words = torch.empty(shape, dtype=torch.int32, device="meta")
    norms = torch.empty(*lead, tiles, units * UNIT // group, 8, 4, device="meta")
    layer, widths = Tiles(words, norms), (tiles * lanes, group, group)
    asked = Asked(processors, shared_bytes, crossing)
    for tokens in TOKENS:
        x = torch.empty(tokens, units * UNIT, dtype=dtype, device="meta")
        if lead:
            pairs.multiply(asked, x, layer, _routing(tokens, lead[0], group), *widths)
        else:
            on_device.linear(asked, x, layer, *widths)
    return tuple(asked.instances)


def _routing(n_pairs: int, count: int, group: int) -> pairs.Routing:
    of_order, of_jobs = pairs.sizes(n_pairs, count, group)
    order = torch.empty(of_order, dtype=torch.int64, device="meta")
    return pairs.Routing(order, torch.empty(of_jobs, 4, dtype=torch.int32, device="meta"))


class Asked:
    """A device that launches nothing and notes the instances that it is asked for."""

    def __init__(self, processors: int, shared_bytes: int, crossing: Crossing) -> None:
        self.processors, self.shared_bytes, self.crossing = processors, shared_bytes, crossing
        self.instances: dict[tuple[str, str], None] = {}

    def load(self, kernel: str, instance: str) -> None:
        self.instances[kernel, instance] = None

    def launch(self, call: Call) -> None:
        self.load(call.kernel, call.instance)

    def sequence(self) -> None:
        """None, always: nothing is launched or captured."""
