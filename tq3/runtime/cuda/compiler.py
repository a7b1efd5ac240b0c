"""Kernels compiled by NVRTC where they run, and kept on the disk for the next process.

NVRTC comes with CUDA builds of torch; it needs neither a toolkit nor headers.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from tq3.runtime.cuda import source

# Every rounding is written down, so the compiler must neither fuse nor flush. 177: a constant that
# only another kernel needs.
OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--diag-suppress=177",
)
_DIGEST_BYTES = 32
# Tensor cores that multiply 16 x 32 bytes.
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code for one architecture. function: the kernel's name in it."""

    cubin: bytes
    function: str


def architecture_for(capability: tuple[int, int]) -> str | None:
    """The architecture to compile for, such as "sm_90"; None for a device that takes no code of
    this NVRTC, or is older than LEAST_CAPABILITY.

    Code runs on devices of its own major version, from its minor version on.
    """
    major, minor = capability
    known = [divmod(number, 10) for number in _answer(nvrtc.nvrtcGetSupportedArchs())]
    fits = [of for of in known if of[0] == major and of[1] <= minor]
    return f"sm_{major}{max(fits)[1]}" if fits and capability >= LEAST_CAPABILITY else None


def compiled(kernel: str, instance: str, architecture: str, cache: Path | None = None) -> Code:
    """The code of `instance`, such as "multiply<Dtype::kBF16, 3, 128, 1>", of `kernel`.cu.

    cache: a folder for codes, by default one for this user; one that can't be written to, or that
    others may write to, is not used. Many processes may ask at once: a file appears when it is
    whole.
    """
    text = source.kernel(kernel)
    folder = cache or default_cache()
    if folder is None:
        return _compile(kernel, text, instance, architecture)
    key = "\n".join((str(version()), architecture, *OPTIONS, instance, text))
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    found = _read(file)
    if found is None:
        found = _compile(kernel, text, instance, architecture)
        with suppress(OSError):
            _write(file, found)
    return found


def default_cache() -> Path | None:
    """Where codes are kept: the user's folder for what can be made again; None for who has none."""
    try:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(folder) / "tq3" / "kernels"


def version() -> tuple[int, int]:
    """NVRTC's own."""
    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


def intermediate(kernel: str, instance: str, architecture: str) -> str:
    """The PTX from which NVRTC makes the machine code of `compiled`, by the same options."""
    with _program(kernel, source.kernel(kernel), instance, architecture) as program:
        text = _text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        return text.rstrip(b"\0").decode()


def _compile(kernel: str, text: str, instance: str, architecture: str) -> Code:
    with _program(kernel, text, instance, architecture) as program:
        cubin = _text(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        name = _answer(nvrtc.nvrtcGetLoweredName(program, instance.encode()))
        return Code(cubin, name.decode())


@contextmanager
def _program(kernel: str, text: str, instance: str, architecture: str) -> Iterator[Any]:
    program = _answer(nvrtc.nvrtcCreateProgram(text.encode(), f"{kernel}.cu".encode(), 0, [], []))
    try:
        _answer(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            raise RuntimeError(f"{instance} does not compile for {architecture}: {log.decode()}")
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(program: Any, size: Any, read: Any) -> bytes:
    # NVRTC writes into the object. One of a single byte would be Python's own, for all to share.
    n_bytes = _answer(size(program))
    text = bytes(n_bytes + 1)
    _answer(read(program, text))
    return text[:n_bytes]


def _answer(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {error.name}")
    return values[0] if len(values) == 1 else values


def _read(file: Path) -> Code | None:
    """A kept cubin; None if it is missing, damaged, or perhaps another user's: it would be run."""
    with suppress(OSError):
        folder = file.parent.stat()
        if folder.st_uid != os.getuid() or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        raw = file.read_bytes()
        digest, rest = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if hashlib.sha256(rest).digest() == digest:
            name, _, cubin = rest.partition(b"\0")
            return Code(cubin, name.decode())
    return None


def _write(file: Path, code: Code) -> None:
    rest = code.function.encode() + b"\0" + code.cubin
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(rest).digest() + rest)
        Path(draft).replace(file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
