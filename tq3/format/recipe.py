"""What the user asks of a compression: a frozen value, checked where it enters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tq3.errors import UsageError
from tq3.format.arguments import check_fields

if TYPE_CHECKING:
    from tq3.format.widths import Widths

WIDTHS = (2, 3, 4)
GROUP_SIZES = (32, 64, 128, 256)
# How a group's codes are chosen: docs/format.md, section 4.
SCALES = ("norm", "search")
NORMS = ("float32", "float16")
KEEP_DTYPES = ("float16", "source")
NONFINITE = ("error", "keep")
DEFAULT_SHARD_SIZE = "5GiB"
DEFAULT_SENSITIVE_PATTERNS = ("o_proj", "down_proj")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(size: float | str) -> int:
    """Bytes of "5GiB", "500 MB" or 1000000: powers of 1024 with an i, of 1000 without."""
    text = str(size)
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UsageError("not a size", found=repr(text), expected='a number and a unit like "5GiB"')
    return int(Fraction(match[1]) * unit)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to compress.

    bits, group_size: width of a code and weights a group
    keep, only: globs on whole tensor names, for what stays uncompressed, for all that is compressed
    keep_dtype: how floating-point tensors that stay are stored: "float16", where nothing is lost
    that matters (`tq3.format.precision`), or "source", as they are
    max_shard_bytes: tensor bytes of one output file
    sensitive_bits, sensitive_patterns: another width for names that contain one of the patterns
    nonfinite: "error" ends the run at a NaN or infinity, "keep" stores that tensor uncompressed
    scale: how codes are chosen, by "search" for the smallest error or from the "norm" as published
    norms: how norms are stored, as "float32" or as "float16", which other readers may not know
    widths: by role, in place of `bits` and `sensitive_bits`
    equalize: scale columns for smaller errors where it counts, and what feeds them inversely
    """

    bits: int = 3
    group_size: int = 128
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep_dtype: str = "float16"
    max_shard_bytes: int = parse_size(DEFAULT_SHARD_SIZE)
    sensitive_bits: int | None = None
    sensitive_patterns: tuple[str, ...] = DEFAULT_SENSITIVE_PATTERNS
    nonfinite: str = "error"
    scale: str = "search"
    norms: str = "float32"
    widths: Widths | None = None
    equalize: bool = False

    def __post_init__(self) -> None:
        check_fields(self, Widths=Any)  # Widths checks itself
        _check_choice("bits", self.bits, WIDTHS)
        _check_choice("group-size", self.group_size, GROUP_SIZES)
        _check_choice("keep-dtype", self.keep_dtype, KEEP_DTYPES)
        _check_choice("nonfinite", self.nonfinite, NONFINITE)
        _check_choice("scale", self.scale, SCALES)
        _check_choice("norms", self.norms, NORMS)
        if self.sensitive_bits is not None:
            _check_choice("sensitive-bits", self.sensitive_bits, WIDTHS)
        check_shard_bytes(self.max_shard_bytes)
        if self.widths:
            self.widths.check()

    def bits_for(self, name: str) -> int:
        """The width of tensor `name` without `widths`, by the rule of existing readers.

        That is a plain substring.
        """
        if self.sensitive_bits is not None and any(p in name for p in self.sensitive_patterns):
            return self.sensitive_bits
        return self.bits


def check_shard_bytes(n_bytes: int) -> None:
    """Raise UsageError for a shard that can hold nothing."""
    if n_bytes < 1:
        raise UsageError("--max-shard-size is not positive", found=n_bytes)


def _check_choice(option: str, found: object, choices: tuple[object, ...]) -> None:
    if found not in choices:
        allowed = ", ".join(map(str, choices))
        raise UsageError(f"--{option} is {found!r}", expected=f"one of {allowed}")
