"""How near to the best scale of each group other ways of looking for it come: docs/quality.md.

    python scripts/scale_search.py [--bits 3] [--group 128] [--groups 20000]

Gaussian groups of norm 1 in float64. "Passes" are how often all weights of a group are compared
with thresholds. The bound is exact: the codes change only where a weight meets a threshold, and all
these scales are tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tq3.codec import tables
from tq3.codec.reference import SEARCH_STEPS

Array = NDArray[np.float64]


class Groups:
    """Magnitudes, and least squares for the levels that thresholds of any scale choose."""

    def __init__(self, bits: int, group: int, count: int) -> None:
        sizes = np.abs(np.random.default_rng(1).standard_normal((count, group)))
        self.sizes = sizes / np.linalg.norm(sizes, axis=1, keepdims=True)
        self.levels = tables.codebook(bits, group)[1 << (bits - 1) :].astype(np.float64)
        self.boundaries = tables.boundaries(bits, group).astype(np.float64)

    def fit(self, scale: Array | float) -> tuple[Array, Array]:
        """y.c and c.c for each group."""
        thresholds = np.multiply.outer(self.boundaries, np.broadcast_to(scale, len(self.sizes)))
        magnitude = sum((self.sizes > t[:, None]).astype(np.int8) for t in thresholds)
        chosen = self.levels[magnitude]
        return (self.sizes * chosen).sum(axis=1), (chosen * chosen).sum(axis=1)

    def error(self, scale: Array | float) -> Array:
        product, square = self.fit(scale)
        return 1 - product**2 / square

    def corrected_norm(self) -> Array:
        product, square = self.fit(1)
        return 2 - 2 * product / np.sqrt(square)

    def bound(self) -> Array:
        """The smallest error of any scale: weights pass thresholds one after the other."""
        gains, squares = np.diff(self.levels), np.diff(self.levels**2)
        meets = np.concatenate([self.sizes / b for b in self.boundaries], axis=1)
        order = np.argsort(-meets, axis=1)
        added = np.concatenate([self.sizes * g for g in gains], axis=1)
        product = np.cumsum(np.take_along_axis(added, order, axis=1), axis=1)
        product += self.levels[0] * self.sizes.sum(axis=1, keepdims=True)
        square = np.cumsum(np.repeat(squares, self.sizes.shape[1])[order], axis=1)
        square += self.sizes.shape[1] * self.levels[0] ** 2
        largest: Array = (product**2 / square).max(axis=1)
        return 1 - largest

    def equally_spaced(self, scales: Array) -> Array:
        least: Array = np.min([self.error(s) for s in scales], axis=0)
        return least

    def alternating(self, starts: tuple[float, ...], rounds: int) -> Array:
        """The gain of the codes is the next scale, as in Lloyd's iteration."""
        errors = []
        for start in starts:
            scale: Array | float = start
            for _ in range(rounds):
                product, square = self.fit(scale)
                scale = product / square
            errors.append(self.error(scale))
        least: Array = np.min(errors, axis=0)
        return least

    def halving(self, steps: tuple[float, ...]) -> Array:
        """A smaller and a larger scale than the best one so far, then half the step."""
        scale = np.ones(len(self.sizes))
        best = self.error(scale)
        for step in steps:
            for other in (scale - step, scale + step):
                error = self.error(other)
                scale = np.where(error < best, other, scale)
                best = np.minimum(error, best)
        return best


def ways(groups: Groups) -> Iterator[tuple[str, int, Array]]:
    """(what is tried, passes, error of each group)"""
    yield "corrected norm", 1, groups.corrected_norm()
    yield "least squares", 1, groups.error(1)
    yield "alternating from 1, 8 rounds", 9, groups.alternating((1,), 8)
    yield "alternating from 0.85, 1, 1.15, 2 rounds", 9, groups.alternating((0.85, 1, 1.15), 2)
    for reach, count in ((0.25, 9), (0.2, 15), (0.25, 15), (0.3, 31)):
        scales = np.linspace(1 - reach, 1 + reach, count)
        yield f"{count} within {reach:.0%}", count, groups.equally_spaced(scales)
    for n in range(1, len(SEARCH_STEPS) + 1):
        name = f"halving from 1/4 to 1/{1 / SEARCH_STEPS[n - 1]:.0f}"
        yield name, 1 + 2 * n, groups.halving(SEARCH_STEPS[:n])
    further = (*SEARCH_STEPS, SEARCH_STEPS[-1] / 2)
    yield f"halving from 1/4 to 1/{1 / further[-1]:.0f}", 11, groups.halving(further)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--groups", type=int, default=20000)
    options = parser.parse_args()
    groups = Groups(options.bits, options.group, options.groups)
    bound = groups.bound().mean()
    for name, passes, errors in ways(groups):
        error = errors.mean()
        print(f"{name:42} {passes:2}  {error:.5f}  {error / bound - 1:+.2%}")
    print(f"{'the best scale of each group':42}     {bound:.5f}")


if __name__ == "__main__":
    main()
