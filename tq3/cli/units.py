"""Numbers as people read them."""

from __future__ import annotations

_STEPS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def gigabytes(n_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one: 15.37 GB."""
    for step, unit in _STEPS:
        if n_bytes >= step:
            return f"{n_bytes / step:.2f} {unit}"
    return f"{int(n_bytes)} bytes"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03, 2:03 or 3 s."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}" if minutes else f"{whole} s"


def count(number: int) -> str:
    """A count as 1,199, 134.5 M or 27.78 B."""
    if number >= 10**9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.1f} M" if number >= 10**6 else f"{number:,}"
