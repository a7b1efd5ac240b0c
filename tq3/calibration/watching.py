"""What the matrices of a layer multiply while it is computed: sums of x x', in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from tq3.codec.calibrated import BLOCK

# A parameter, and the number of the matrix where it is a stack of them.
Place = tuple[str, int]


@dataclass(slots=True)
class Sums:
    """The sum of x x' over the tokens of one input x, in blocks on the diagonal.

    columns: width of x; sums: (blocks, columns of a block, the same) float32; tokens: how many
    """

    columns: int
    sums: torch.Tensor
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add the tokens of (tokens, columns)."""
        count, size, _ = self.sums.shape
        rows = torch.nn.functional.pad(inputs.float(), (0, count * size - inputs.shape[-1]))
        blocks = rows.view(-1, count, size).transpose(0, 1)
        self.sums.baddbmm_(blocks.transpose(1, 2), blocks)
        self.tokens += len(inputs)


class Watch(TorchFunctionMode):
    """Sees every product of an input with a parameter, or with a matrix of a stack.

    parameters: by name, in memory. What several multiply is summed once, for the first of them.
    readers: place -> the place whose sums it shares
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._spans = sorted(
            (each.data_ptr(), each.data_ptr() + each.nbytes, name)
            for name, each in parameters.items()
            if each.ndim in (2, 3) and each.is_contiguous()
        )
        self._parameters = parameters
        self._seen: list[tuple[torch.Tensor, Place]] = []
        self.readers: dict[Place, Place] = {}
        self.found: dict[Place, Sums] = {}

    def n_matrices(self, name: str) -> int:
        """How many matrices are stacked in the parameter `name`; 0 where it is a matrix itself."""
        parameter = self._parameters[name]
        return len(parameter) if parameter.ndim == 3 else 0

    def forget_inputs(self) -> None:
        """After a call of the layer: another input may come to lie where one of this call did."""
        self._seen.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear:
            given = dict(zip(("input", "weight"), args, strict=False), **(kwargs or {}))
            self._see(given["input"], given["weight"])
        return func(*args, **(kwargs or {}))

    def _see(self, inputs: torch.Tensor, weight: torch.Tensor) -> None:
        place = self._place(weight)
        if place is None or not inputs.numel():
            return
        first = self.readers.get(place)
        if first is None:
            first = next((p for seen, p in self._seen if _is_same(seen, inputs)), place)
            self.readers[place] = first
        if first != place:
            return
        self._seen.append((inputs, place))
        if place not in self.found:
            size = min(BLOCK, inputs.shape[-1])
            shape = -(-inputs.shape[-1] // size), size, size
            self.found[place] = Sums(inputs.shape[-1], torch.zeros(shape, device=inputs.device))
        self.found[place].add(inputs.reshape(-1, inputs.shape[-1]))

    def _place(self, weight: torch.Tensor) -> Place | None:
        start = weight.data_ptr()
        for begin, end, name in self._spans:
            if begin <= start < end:
                matrix = self._parameters[name][..., :, :]
                n_bytes = matrix.shape[-1] * matrix.shape[-2] * matrix.element_size()
                number, inside = divmod(start - begin, n_bytes)
                is_whole = not inside and weight.shape == matrix.shape[-2:]
                return (name, number) if is_whole and weight.is_contiguous() else None
        return None


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )
