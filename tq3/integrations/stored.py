"""Which matrices of a checkpoint are packed, and how wide: from names and shapes in its headers.

Hosts build their layers by this, never by patterns: what is stored is what must be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

from tq3.errors import BadInput, UsageError
from tq3.format.layout import NORMS, PACKED
from tq3.format.widths import WIDTHS

# What checkpoints call a table of embeddings; `embed_out` is GPT-NeoX's output head.
_TABLE = re.compile(r"(^|\.)(\w*embed(?!_out)\w*|wte)\.weight$")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One stored matrix, or stack of matrices of experts.

    rows: all of them, leading dimensions flattened
    bits: 0 where it is not packed
    groups: of a row, where it is packed
    source: its name in the checkpoint
    transposed: whether it is a stack that hosts have with rows and columns exchanged
    """

    rows: int
    bits: int = 0
    groups: int = 0
    source: str = field(default="", compare=False)
    transposed: bool = False

    @property
    def is_packed(self) -> bool:
        return self.bits > 0

    def n_bytes(self, group: int) -> int:
        """Bytes of the codes, and of the norms as float32."""
        return self.rows * self.groups * (group * self.bits // 8 + 4)


@dataclass(frozen=True, slots=True)
class Stored:
    """Source name (`model.layers.0.mlp.up_proj.weight`) -> matrix, packed or not."""

    matrices: Mapping[str, Matrix]
    group: int

    @property
    def n_packed(self) -> int:
        return sum(matrix.is_packed for matrix in self.matrices.values())

    def renamed(self, rename: Callable[[str], str | None]) -> Stored:
        """The stored tensors under the names that a host has for its modules."""
        pairs = ((rename(name), matrix) for name, matrix in self.matrices.items())
        return Stored({name: matrix for name, matrix in pairs if name}, self.group)

    def find(self, name: str) -> Matrix | None:
        """The matrix of this name; None where there is none, or several that differ."""
        return self.common(self.named(name))

    def named(self, name: str) -> list[str]:
        """What is stored under this name; hosts may put other components before it.

        Without an exact match, all that end in the longest tail of `name` that is stored.
        """
        if name in self.matrices:
            return [name]
        components = name.split(".")
        for first in range(1, len(components) - 2):
            tail = "." + ".".join(components[first:])
            if found := [stored for stored in self.matrices if ("." + stored).endswith(tail)]:
                return found
        return []

    def resembling(self, name: str) -> list[str]:
        """What a host may mean whose name lacks components, or has others.

        All that end in the two last components of `name` and have the same numbers before them;
        without any, all with that end.
        """
        same_end = [stored for stored in self.matrices if _end(stored) == _end(name)]
        return [stored for stored in same_end if _numbers(stored) == _numbers(name)] or same_end

    def common(self, names: Iterable[str]) -> Matrix | None:
        """What all of these are; None where they differ, and for none."""
        found = {self.matrices[name] for name in names}
        return found.pop() if len(found) == 1 else None

    def tables(self, rows: int, columns: int) -> list[str]:
        """The embeddings of this size, for hosts that do not name theirs."""
        n = -(-columns // self.group)
        return [
            name
            for name, matrix in self.matrices.items()
            if _TABLE.search(name) and matrix.rows == rows and matrix.groups in (0, n)
        ]

    def below(self, prefix: str) -> dict[str, Matrix]:
        """All matrices below a component path, by what follows it."""
        start = prefix + "."
        found = {name: m for name, m in self.matrices.items() if name.startswith(start)}
        return {name.removeprefix(start): matrix for name, matrix in found.items()}


def _end(name: str) -> list[str]:
    return name.split(".")[-2:]


def _numbers(name: str) -> list[str]:
    return [component for component in name.split(".") if component.isdigit()]


def read_shapes(shapes: Mapping[str, Sequence[int]], group: int) -> Stored:
    """From tensor names and shapes, as the headers have them. Raises BadInput for a broken pair."""
    matrices = {}
    for name, shape in shapes.items():
        stem = name.removesuffix(PACKED)
        if stem != name:
            matrices[stem] = _packed(stem, shape, shapes.get(stem + NORMS, ()), group)
        elif not name.endswith(NORMS) and len(shape) >= 2:
            matrices[name] = Matrix(rows=prod(shape[:-1]), source=name)
    return Stored(matrices, group)


def _packed(name: str, packed: Sequence[int], norms: Sequence[int], group: int) -> Matrix:
    bits = packed[1] * 8 // group if len(packed) == 2 else 0
    fits = bits in WIDTHS and len(norms) in (2, 3) and packed[0] == prod(norms)
    if not fits or packed[1] * 8 != bits * group:
        raise BadInput(
            "codes and norms contradict each other",
            tensor=name,
            found=f"codes {list(packed)}, norms {list(norms)}",
            expected=f"[rows*n, {group}*bits/8] and [rows, n] or [experts, rows, n]",
            fix="fetch the checkpoint again; `tq3 verify` finds what is damaged",
        )
    *rows, groups = norms
    return Matrix(prod(rows), bits, groups, name, transposed=len(rows) == 2)


def spread(parts: Sequence[Matrix], sizes: Sequence[int]) -> list[Matrix]:
    """The part that each partition of a fused layer is loaded from; none if they do not fill it.

    A part may fill several partitions that follow each other: Gated DeltaNet's in_proj_qkv is
    three of the four of in_proj_qkvz. sizes: rows of the partitions, before tensor parallelism.
    """
    if len(parts) == len(sizes):
        return list(parts)
    if len(parts) == 1:
        return list(parts) * len(sizes)
    ends = list(accumulate(part.rows for part in parts))
    found = [
        next((part for part, end in zip(parts, ends, strict=True) if filled <= end), None)
        for filled in accumulate(sizes)
    ]
    is_filled = ends[-1] == sum(sizes)
    return [part for part in found if part] if is_filled and None not in found else []


def groups_of_a_rank(columns: int, of_a_rank: int, group: int, layer: str) -> int:
    """Groups of a row that one rank holds, when `columns` are split. Raises UsageError."""
    if of_a_rank != columns and of_a_rank % group:
        ranks = columns // of_a_rank
        raise UsageError(
            f"tensor parallelism over {ranks} ranks would split a group of {group} weights",
            tensor=layer,
            found=f"{columns} columns, {of_a_rank} a rank",
            expected=f"a multiple of {group} a rank",
            fix=f"the largest tensor parallel size up to {ranks} for this layer is "
            f"{largest_parallelism(columns, ranks, group)}; in vLLM, a vision tower is not split "
            "with --mm-encoder-tp-mode data",
        )
    return -(-of_a_rank // group)


def largest_parallelism(columns: int, at_most: int, group: int) -> int:
    """The most ranks, up to `at_most`, among which whole groups can be shared out."""
    return max(n for n in range(1, at_most + 1) if n == 1 or columns % (n * group) == 0)


def runs(widths: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(bits, rows) of neighbours of the same width, added up."""
    found: list[tuple[int, int]] = []
    for bits, rows in widths:
        if found and found[-1][0] == bits:
            found[-1] = (bits, found[-1][1] + rows)
        else:
            found.append((bits, rows))
    return found
