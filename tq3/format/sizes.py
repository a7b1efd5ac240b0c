"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from tq3.errors import UsageError

DEFAULT_SHARD_SIZE = "5GiB"
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


def check_shard_bytes(n_bytes: int) -> None:
    """Raise UsageError for a shard that can hold nothing."""
    if n_bytes < 1:
        raise UsageError("--max-shard-size is not positive", found=n_bytes)
