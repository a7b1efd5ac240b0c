"""Compare the linear kernels inside tests/runtime/linear_driver.cpp with the reference.

    PYTHONPATH=tests python -m support.runtime.driver_check COMMAND...

The command starts the driver, for instance in an emulator.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import torch

from support.runtime.layers import (
    BITS,
    DTYPES,
    GROUPS,
    ROTATIONS,
    SPECIAL,
    activations,
    assert_same,
    layer,
    spoil,
)
from tq3.codec import tables
from tq3.runtime import arithmetic, generic, reference

LINEAR, DECODE = range(2)
WORDS = (torch.int16, torch.int16, torch.int32)


class Driver:
    """The kernels in another process; see linear_driver.cpp for what is said."""

    def __init__(self, command: list[str]) -> None:
        names = subprocess.run([*command, "names"], check=True, capture_output=True, text=True)
        self.kernels = names.stdout.split()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(
        self,
        operation: int,
        kernel: str,
        x: torch.Tensor,
        packed: torch.Tensor,
        norms: torch.Tensor,
        bits: int,
        group: int,
        rotation: int,
    ) -> torch.Tensor:
        (tokens, columns), (rows, n) = x.shape, norms.shape
        dtype = DTYPES.index(x.dtype)
        fields = [
            operation,
            self.kernels.index(kernel),
            bits,
            group,
            rotation,
            rows,
            n,
            columns,
            tokens,
        ]
        words = x.contiguous().view(WORDS[dtype]).numpy()
        parts = [np.array([*fields, dtype], np.int64), width(bits, group, rotation)]
        assert self._process.stdin and self._process.stdout
        for part in (*parts, words, packed.numpy(), norms.numpy()):
            self._process.stdin.write(part.tobytes())
        self._process.stdin.flush()
        shape = (tokens, rows) if operation == LINEAR else (rows, n * group)
        answer = self._process.stdout.read(math.prod(shape) * x.element_size())
        assert len(answer) == math.prod(shape) * x.element_size(), "the driver stopped"
        return torch.frombuffer(bytearray(answer), dtype=x.dtype).reshape(shape)


def width(bits: int, group: int, rotation: int) -> np.ndarray:
    """The struct Width of linear.h."""
    record = np.zeros(1, [
        ("sizes", "i4", 3), ("whole", "i1", 16), ("unit", "f4"), ("level", "f4", 16),
        ("d1", "f4", 256), ("d2", "f4", 256), ("inverse_root_rotation", "f4"),
    ])  # fmt: skip
    record["sizes"] = bits, group, rotation
    record["whole"][0, : 1 << bits] = arithmetic.integer_codebook(bits)
    record["unit"] = arithmetic.unit(bits, group, rotation)
    record["level"][0, : 1 << bits] = tables.codebook(bits, group)
    record["d1"][0, :group], record["d2"][0, :group] = tables.signs(group)
    record["inverse_root_rotation"] = 1 / np.sqrt(rotation)
    return record


def check_linear(driver: Driver, kernel: str, bits: int, group: int, rotation: int) -> int:
    """All dtypes, kinds of activations, and numbers of groups around an octet."""
    checked = 0
    for dtype in DTYPES:
        for tokens, n in ((1, 1), (2, 7), (7, 8), (9, 9)):
            x = activations(tokens, n * group - n % 4, dtype, seed=n)
            spoil(x, SPECIAL[(n + bits) % len(SPECIAL)], tokens // 2)
            packed, norms = layer(5, n, bits, group)
            found = driver.ask(LINEAR, kernel, x, packed, norms, bits, group, rotation)
            assert_same(found, reference.linear(x, packed, norms, bits, group, rotation))
            checked += 1
    return checked


def check_threads(driver: Driver, kernel: str) -> None:
    """A layer large enough to be shared out."""
    x, (packed, norms) = activations(3, 1280), layer(300, 10)
    found = driver.ask(LINEAR, kernel, x, packed, norms, 3, 128, 128)
    assert_same(found, reference.linear(x, packed, norms, 3, 128))


def check_decode(driver: Driver, kernel: str, bits: int, group: int) -> None:
    """Rows in rotated space, in all dtypes."""
    packed, norms = layer(5, 3, bits, group)
    for dtype in DTYPES:
        x = activations(1, 3 * group, dtype)
        found = driver.ask(DECODE, kernel, x, packed, norms, bits, group, group)
        assert_same(found, generic.decode(packed, norms, bits, group).to(dtype))


def main(command: list[str]) -> None:
    driver = Driver(command)
    for kernel in driver.kernels:
        checked = 1
        check_threads(driver, kernel)
        for bits in BITS:
            for group, rotation in ROTATIONS:
                checked += check_linear(driver, kernel, bits, group, rotation)
            for group in GROUPS:
                check_decode(driver, kernel, bits, group)
        print(f"{kernel}: {checked} layers equal the reference")


if __name__ == "__main__":
    main(sys.argv[1:])
