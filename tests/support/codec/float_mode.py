"""The floating-point mode of this thread, reached through the C library."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Where glibc's fenv_t keeps the control word, and its bits that flush denormals (FTZ and DAZ; FZ).
_CONTROL_WORDS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Treat denormals as zero, as torch.set_flush_denormal and -ffast-math libraries do."""
    if sys.platform != "linux" or platform.machine() not in _CONTROL_WORDS:
        pytest.skip("knows the floating-point environment of glibc only")
    before = _environment()
    offset, flush = _CONTROL_WORDS[platform.machine()]
    changed = bytearray(before)
    control = int.from_bytes(changed[offset : offset + 4], "little") | flush
    changed[offset : offset + 4] = control.to_bytes(4, "little")
    _set_environment(bytes(changed))
    try:
        yield
    finally:
        _set_environment(before)


def is_flushing_denormals() -> bool:
    """Whether arithmetic of this thread treats denormals as zero."""
    offset, flush = _CONTROL_WORDS[platform.machine()]
    control = int.from_bytes(_environment()[offset : offset + 4], "little")
    return control & flush == flush


def _environment() -> bytes:
    buffer = ctypes.create_string_buffer(64)
    assert ctypes.CDLL("libm.so.6").fegetenv(buffer) == 0
    return buffer.raw


def _set_environment(environment: bytes) -> None:
    assert ctypes.CDLL("libm.so.6").fesetenv(environment) == 0
