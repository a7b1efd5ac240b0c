"""Measures the errors that tq3/codec/expected.py and docs/verify.md expect, for either scale.

    python scripts/expected_errors.py [--weights 50000000]

First Gaussian weights: mean and standard deviation of a group's relative squared error, and how
many groups are beyond the limit of a single one. Then other weights in groups of 128, a twelfth as
many: how far the error of a whole tensor is from that of Gaussian ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tq3.codec.backend import get_backend
from tq3.codec.expected import expected_error, group_error_limit
from tq3.format.recipe import GROUP_SIZES, SCALES
from tq3.format.widths import WIDTHS

_CHUNK_WEIGHTS = 1 << 20
_ROWS, _COLS = 1024, 1024

Rng = np.random.Generator
Floats = NDArray[np.float32]
OTHERS: dict[str, Callable[[Rng], NDArray[np.float64]]] = {
    "Laplace": lambda rng: rng.laplace(size=(_ROWS, _COLS)),
    "Student t, 3 degrees of freedom": lambda rng: rng.standard_t(3, (_ROWS, _COLS)),
    "1 % of the weights 10 times larger": lambda rng: _some_larger(rng, (_ROWS, _COLS), 0.01, 10),
    "0.1 % of the weights 50 times larger": lambda rng: _some_larger(
        rng, (_ROWS, _COLS), 0.001, 50
    ),
    "1 % of the columns 20 times larger": lambda rng: _some_larger(rng, (1, _COLS), 0.01, 20),
    "half of the weights zero": lambda rng: _some_larger(rng, (_ROWS, _COLS), 0.5, 0),
    "nine tenths zero": lambda rng: _some_larger(rng, (_ROWS, _COLS), 0.9, 0),
    "constant rows": lambda rng: np.repeat(rng.normal(size=(_ROWS, 1)), _COLS, 1),
    "constant rows and a tenth of noise": lambda rng: (
        rng.normal(size=(_ROWS, 1)) + 0.1 * rng.normal(size=(_ROWS, _COLS))
    ),
    "rank one": lambda rng: rng.normal(size=(_ROWS, 1)) * rng.normal(size=(1, _COLS)),
    "rounded to about 4 bits": lambda rng: np.round(rng.normal(size=(_ROWS, _COLS)) * 2.5),
}


def _some_larger(
    rng: Rng, shape: tuple[int, int], share: float, factor: float
) -> NDArray[np.float64]:
    """Gaussian weights, this share of which (places or whole columns) is multiplied."""
    return rng.normal(size=(_ROWS, _COLS)) * np.where(rng.random(shape) < share, factor, 1)


def squares(
    weights: Floats, bits: int, group: int, scale: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of squares of the error and of the weights.  Two (n_groups,)"""
    backend = get_backend()
    groups = weights.reshape(-1, group)
    packed = np.empty((len(groups), group * bits // 8), np.uint8)
    norms = np.empty((len(groups), 1), np.float32)
    backend.encode(groups.view(np.uint32), "F32", bits, group, packed, norms, scale)
    decoded = np.empty_like(groups)
    backend.decode(packed, norms, bits, group, decoded.view(np.uint32), "F32")
    exact = groups.astype(np.float64)
    return np.square(exact - decoded).sum(1), np.square(exact).sum(1)


def gaussian(n_weights: int) -> None:
    print("scale   bits  group    mean  deviation  beyond the limit")
    for scale, bits, group in product(SCALES, WIDTHS, GROUP_SIZES):
        rng = np.random.default_rng(0)
        errors = []
        for _ in range(-(-n_weights // _CHUNK_WEIGHTS)):
            error, energy = squares(
                rng.standard_normal(_CHUNK_WEIGHTS, np.float32), bits, group, scale
            )
            errors.append(error / energy)
        found = np.concatenate(errors)
        beyond = (found > group_error_limit(bits, group)).mean()
        figures = f"{found.mean():.4f}     {found.std():.4f}  {beyond:.5%}"
        print(f"{scale:6}  {bits:4}  {group:5}  {figures}", flush=True)


def others(n_weights: int) -> None:
    columns = [*product(SCALES, WIDTHS)]
    print(f"\n{'':37}" + "".join(f"{f'{scale} {bits}':>10}" for scale, bits in columns))
    for name, make in OTHERS.items():
        print(f"{name:37}", end="")
        for scale, bits in columns:
            rng = np.random.default_rng(0)
            total = np.zeros(2)
            for _ in range(-(-n_weights // (_ROWS * _COLS))):
                total += [
                    each.sum() for each in squares(make(rng).astype(np.float32), bits, 128, scale)
                ]
            error = total[0] / total[1]
            print(f"{error / expected_error(scale, bits, 128) - 1:>+10.1%}", end="", flush=True)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=50_000_000)
    n_weights = parser.parse_args().weights
    gaussian(n_weights)
    others(n_weights // 12)


if __name__ == "__main__":
    main()
