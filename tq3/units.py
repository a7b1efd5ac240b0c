"""Numbers and names as people read them."""

from __future__ import annotations

_UNITS = ((10**3, "kB"), (10**6, "MB"), (10**9, "GB"), (10**12, "TB"))
_EXACT = dict(_UNITS) | {2**10: "KiB", 2**20: "MiB", 2**30: "GiB", 2**40: "TiB"}


def size(n_bytes: int) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one: 15.37 GB."""
    if n_bytes < 1000:
        return counted(n_bytes, "byte")
    step, unit = _unit(n_bytes)
    return f"{n_bytes / step:.2f} {unit}"


def exact_size(n_bytes: int) -> str:
    """Bytes to the last one, in the largest unit of which they are a multiple: 13 GiB, 500 MB."""
    fits = [step for step in _EXACT if n_bytes and n_bytes % step == 0]
    if not fits:
        return "1 byte" if n_bytes == 1 else f"{n_bytes:,} bytes"
    return f"{n_bytes // max(fits)} {_EXACT[max(fits)]}"


def share(done: int, total: int) -> str:
    """Bytes out of a total, in the total's unit: 0.52/15.37 GB."""
    if total < 1000:
        return f"{done}/{size(total)}"
    return f"{done / _unit(total)[0]:.2f}/{size(total)}"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03, 2:03 or 3 s."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}" if minutes else f"{whole} s"


def count(number: int) -> str:
    """A count as 1,199, 134.5 M or 27.78 B."""
    if number < 10**6:
        return f"{number:,}"
    millions = round(number / 1e6, 1)
    return f"{millions:.1f} M" if millions < 1000 else f"{number / 1e9:.2f} B"


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 tensor, 2 tensors."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Control characters as Python writes them: a name must not steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _unit(n_bytes: int) -> tuple[int, str]:
    # What two decimals would round up to 1000 belongs to the next unit.
    fits = (unit for unit in _UNITS if round(n_bytes / unit[0], 2) < 1000)
    return next(fits, _UNITS[-1])
