"""What the PTX interpreter passed: kernels that have not changed need not be interpreted again.

    PYTHONPATH=tests python -m support.cuda.record

writes down that it passed with the kernels and the NVRTC of now: `make ptx` runs its tests first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tq3.runtime.cuda import compiler, source

HERE = Path(__file__).parent
RECORD = HERE / "ptx" / "passed.txt"
KERNELS = ("rotate_quantise", "multiply", "share", "split", "rotate", "decode")


def digest() -> str:
    """Of all that the outcome depends on but for NVRTC: kernels and options they are compiled with,
    the interpreter, and what is asked of it.
    """
    files = sorted((*HERE.glob("ptx/*.py"), HERE.parents[1] / "cuda" / "test_ptx_kernels.py"))
    parts = [*map(source.kernel, KERNELS), *compiler.OPTIONS, *(each.read_text() for each in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def nvrtc() -> str:
    """Its version, such as "NVRTC 13.5"."""
    return "NVRTC {}.{}".format(*compiler.version())


def has_passed(now: str) -> bool:
    """Whether the interpreter passed with `now`: a digest or a version of NVRTC."""
    return RECORD.exists() and now in RECORD.read_text().splitlines()


if __name__ == "__main__":
    RECORD.write_text(f"{digest()}\n{nvrtc()}\n")
