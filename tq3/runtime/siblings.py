"""Layers that may read one input: what was made of it for one is there for the others.

On a GPU an input is rotated and quantised by a kernel of its own, and its values can't be asked
for. So it is known by being the same tensor, unchanged, in one and the same order of launches.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import torch

from tq3.runtime.cuda import calls
from tq3.runtime.cuda.calls import Activations, Quantise
from tq3.runtime.cuda.launches import Launcher


class _Last(NamedTuple):
    """The last input, what it was quantised to, and for which layers."""

    x: weakref.ref[torch.Tensor]
    version: int
    form: Hashable
    activations: Activations
    readers: list[Hashable]


class Siblings:
    """What one of several layers had quantised last. It goes with its input.

    A layer that asks a second time for the same input gets it anew, and so do the others: what
    writes into a tensor without torch's knowledge, such as the replay of a graph, does so between
    two turns of all of them.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: _Last | None = None

    def __reduce__(self) -> Any:
        return Siblings, ()

    def quantise(self, x: torch.Tensor, reader: Hashable) -> Quantise:
        """`calls.quantise` for a layer whose input is x, in whatever shape it is passed on."""
        if x.is_inference():  # such a tensor doesn't tell whether it was changed
            return calls.quantise
        return partial(self._quantise, x, reader)

    def _quantise(
        self,
        given: torch.Tensor,
        reader: Hashable,
        on: Launcher,
        x: torch.Tensor,
        n: int,
        bits: int,
        group: int,
        rotation: int,
    ) -> Activations:
        last, version = self._last, given._version
        form = n, bits, group, rotation, on.sequence()
        if (
            last is not None
            and last.x() is given
            and (last.version, last.form) == (version, form)
            and reader not in last.readers
        ):
            last.readers.append(reader)
            return last.activations
        activations = calls.quantise(on, x, n, bits, group, rotation)
        place = weakref.ref(given, self._forget)
        self._last = _Last(place, version, form, activations, [reader])
        return activations

    def _forget(self, x: weakref.ref[torch.Tensor]) -> None:
        if self._last is not None and self._last.x is x:
            self._last = None
