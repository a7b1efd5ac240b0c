"""How to compress: a frozen value, checked where it enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tq3.format.arguments import check_fields
from tq3.format.sizes import DEFAULT_SHARD_SIZE, check_shard_bytes, parse_size
from tq3.format.widths import Bits, NormDtype, Widths

GroupSize = Literal[32, 64, 128, 256]
# How a group's codes are chosen: docs/format.md, section 4.
Scale = Literal["norm", "search"]
KeptDtype = Literal["float16", "source"]
# Along which axis fused experts are cut that are stored with inputs as rows.
ExpertGroups = Literal["stored", "inputs"]
Nonfinite = Literal["error", "keep"]
GROUP_SIZES: tuple[int, ...] = get_args(GroupSize)
SCALES: tuple[str, ...] = get_args(Scale)
# How codes are chosen where second moments of what the weights multiply are known.
CALIBRATED = "calibrated"
# What codes stand for: a level each, or with the two before them (docs/format.md, section 10).
Code = Literal["scalar", "trellis"]
CODES: tuple[str, ...] = get_args(Code)
TRELLIS_WIDTHS = (3, 4)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to compress.

    Fields are the options of the same name (`tq3.format.options.RecipeKeywords`), but for
    max_shard_bytes: tensor bytes of one output file
    widths: by role, in place of `bits` and `sensitive_bits`
    equalize: None for wherever that is possible; what a run records says whether it was
    """

    bits: Bits = 3
    group_size: GroupSize = 128
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep_dtype: KeptDtype = "float16"
    expert_groups: ExpertGroups = "stored"
    max_shard_bytes: int = parse_size(DEFAULT_SHARD_SIZE)
    sensitive_bits: Bits | None = None
    sensitive_patterns: tuple[str, ...] = ("o_proj", "down_proj")
    nonfinite: Nonfinite = "error"
    scale: Scale = "search"
    norms: NormDtype = "float32"
    widths: Widths | None = None
    equalize: bool | None = None
    code: Code = "scalar"

    def __post_init__(self) -> None:
        check_fields(self)
        check_shard_bytes(self.max_shard_bytes)
        if self.widths:
            self.widths.check()

    def code_for(self, bits: int) -> Code:
        """What codes of this width stand for: a trellis has 3 or 4 bits."""
        return self.code if bits in TRELLIS_WIDTHS else "scalar"

    def bits_for(self, name: str) -> int:
        """The width of tensor `name` without `widths`, by the rule of existing readers.

        That is a plain substring.
        """
        if self.sensitive_bits is not None and any(p in name for p in self.sensitive_patterns):
            return self.sensitive_bits
        return self.bits
