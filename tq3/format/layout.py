"""The shapes of one compressed tensor, from the shape of its source."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tq3.format.header import TensorInfo
from tq3.format.recipe import Code

PACKED = ".tq_packed"
TRELLIS = ".tq_trellis"
NORMS = ".tq_norms"
NORM_DTYPES = ("F32", "F16")
# What codes stand for -> the end of the name under which they are stored.
SUFFIXES: dict[Code, str] = {"scalar": PACKED, "trellis": TRELLIS}


def stem_of_codes(name: str) -> tuple[str, Code] | None:
    """The compressed tensor whose codes have this name, and what they stand for; or None."""
    for code, suffix in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), code
    return None


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Rows of weights cut into groups: leading dimensions are rows, a last group is padded.

    norm_dtype: of the stored norms, one of `NORM_DTYPES`
    transposed: whether hosts have the last two dimensions of this stack exchanged, which norms of
    three dimensions say
    code: what codes stand for
    """

    shape: tuple[int, ...]
    bits: int
    group: int
    norm_dtype: str = "F32"
    transposed: bool = False
    code: Code = "scalar"

    @property
    def host_shape(self) -> tuple[int, ...]:
        """The shape of the parameter that hosts have, and of what is restored."""
        return exchanged(self.shape) if self.transposed else self.shape

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def groups_per_row(self) -> int:
        return -(-self.cols // self.group)

    @property
    def is_padded(self) -> bool:
        return self.cols % self.group != 0

    @property
    def group_bytes(self) -> int:
        return self.group * self.bits // 8

    @property
    def units(self) -> int:
        """Parts that can be coded on their own: padded rows, else single groups."""
        return self.rows if self.is_padded else self.rows * self.groups_per_row

    @property
    def unit_cols(self) -> int:
        """Weights of one unit."""
        return self.cols if self.is_padded else self.group

    def tensors(self, name: str) -> tuple[TensorInfo, TensorInfo]:
        """The two tensors that stand for `name` in the checkpoint: packed codes, norms."""
        n_groups = self.rows * self.groups_per_row
        packed = TensorInfo(name + SUFFIXES[self.code], "U8", (n_groups, self.group_bytes))
        rows = self.shape[:-1] if self.transposed else (self.rows,)
        norms = TensorInfo(name + NORMS, self.norm_dtype, (*rows, self.groups_per_row))
        return packed, norms


def exchanged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its last two dimensions exchanged."""
    *stack, rows, columns = shape
    return (*stack, columns, rows)
