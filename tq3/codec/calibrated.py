"""Codes chosen under the second moments of what the weights multiply: docs/calibration.md in numpy.

A matrix W that is read by inputs x loses the mean of |(W - W') x|^2, which is tr(D H D') with D the
error and H = E[x x']. In the basis of the rotation H is K; K = V V' with V upper triangular turns
the loss into a sum over columns, of which each has an error of its own and what the columns before
it hand on. So columns are coded one after the other, each as if it had to make up for the errors so
far. H is taken in blocks of columns; nothing crosses from one block to the next.

This file defines which bytes are right, as `reference.py` does for codes without calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference, tables
from tq3.codec.reference import Floats, Words

Numbers = NDArray[np.float64]

# Scales that are tried for a group, as multiples of the least-squares gain of its targets.
RATIOS = (1.0, 0.94, 1.06, 0.88, 1.12)
# Columns of `Feedback.spread` that lie side by side: a kernel sums that many at a time.
PANEL = 8
# Columns that have their second moments with each other; a multiple of every group.
BLOCK = 512
# What F16 holds to 2**-11 of its size; another norm is left as it is, for the caller to refuse.
_SMALLEST, _TOO_LARGE = np.float32(2.0**-14), np.float32(65520)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the columns of one block do to each other, in the order in which they are coded.

    order: the block's groups, first to last, (m,) int64
    spread: N = V / v, the error of column j that column k makes up for, in panels of columns:
        [k // PANEL, j, k % PANEL], (m*group / PANEL, m*group, PANEL) float32, 0 unless j < k
    weight: v^2, what a squared error of each column costs, (m*group,) float32
    """

    order: NDArray[np.int64]
    spread: Floats
    weight: Floats


def rotated_moments(
    moments: Numbers, mean: float, group: int, damping: float
) -> tuple[NDArray[np.int64], Numbers]:
    """The order of a block's groups, and K / mean + damping * I in that order.

    moments: H of one block, (cols, cols), symmetric; padded with zeros to whole groups
    mean: of the diagonal of H over all blocks; 0: columns count as equal and independent
    damping: what is added to the diagonal, as a part of that mean. Returns (m,), (m*group, m*group)
    """
    cols = len(moments)
    m = -(-cols // group)
    padded = np.zeros((m * group, m * group))
    padded[:cols, :cols] = moments
    d1, d2 = (signs.astype(np.float64) for signs in tables.signs(group))
    for _ in range(2):  # rows, then columns, which are the rows of the transpose
        rotated = reference.hadamard(padded.reshape(-1, group) * d1) * d2
        padded = np.ascontiguousarray(rotated.reshape(m * group, m * group).T)
    sizes = np.cumsum(padded.diagonal().reshape(m, group), axis=1)[:, -1]  # in index order
    order = np.argsort(-sizes, kind="stable")
    columns = (order[:, None] * group + np.arange(group)).reshape(-1)
    matrix = padded[np.ix_(columns, columns)]
    matrix = matrix / (mean * group) if mean > 0 else np.zeros_like(matrix)
    matrix[np.diag_indices(m * group)] += damping if mean > 0 else 1.0
    return order, matrix


def decompose(matrix: Numbers) -> None:
    """Overwrite K by N and v^2: K = N diag(v^2) N', N unit upper triangular.  (n, n) float64

    v^2 comes to lie on the diagonal, N above it; what is below it is rubbish.
    """
    for j in range(len(matrix) - 1, -1, -1):
        column = matrix[:j, j] / matrix[j, j]
        matrix[:j, :j] -= matrix[:j, j, None] * column
        matrix[:j, j] = column


def feedback(order: NDArray[np.int64], decomposed: Numbers) -> Feedback:
    """N and v^2 in float32, from the matrix (n, n) that `decompose` overwrote by them.

    order: the block's groups, as `rotated_moments` gives it
    """
    n = len(decomposed)
    upper = np.triu(decomposed, 1).astype(np.float32)
    spread = np.ascontiguousarray(upper.reshape(n, n // PANEL, PANEL).transpose(1, 0, 2))
    return Feedback(order, spread, decomposed.diagonal().astype(np.float32))


def encode(
    words: Words, dtype: str, bits: int, group: int, feedback: Feedback, norm_dtype: str
) -> tuple[NDArray[np.uint8], Floats]:
    """Codes and norms of one block: (rows, cols) words -> (rows, m, group*bits/8), (rows, m).

    norm_dtype: in which norms will be stored, "F32" or "F16"; they are rounded to it before codes
    are chosen. A norm that F16 does not hold is left as it is, and a group without a finite loss
    gets an infinite one: the caller decides what that means.
    """
    rows, cols = words.shape
    m = len(feedback.order)
    padded = np.zeros((rows, m * group), np.float32)
    padded[:, :cols] = reference.to_float32(words, dtype)
    d1, d2 = tables.signs(group)
    n = m * group
    spread = feedback.spread.transpose(1, 0, 2).reshape(n, n)
    packed = np.zeros((rows, m, group * bits // 8), np.uint8)
    norms = np.zeros((rows, m), np.float32)
    with np.errstate(all="ignore"):
        groups = reference.hadamard(padded.reshape(-1, group) * d1) * d2
        y = groups.reshape(rows, m, group)[:, feedback.order].reshape(rows, n)
        targets = y.copy()
        for place, at in enumerate(feedback.order):
            here = slice(place * group, (place + 1) * group)
            chooser = _Group(
                y[:, here], targets[:, here], spread[here, here], feedback.weight[here], bits
            )
            codes, norms[:, at], delta = chooser.choose(norm_dtype)
            packed[:, at] = reference.pack(codes, bits)
            for j, row in enumerate(spread[here, here.stop :]):
                targets[:, here.stop :] += delta[:, j, None] * row
    return packed, norms


class _Group:
    """One group of every row.

    y, targets: rotated weights, and those with what was handed on to them, (rows, group)
    spread, weight: the group's part of `Feedback`
    """

    def __init__(self, y: Floats, targets: Floats, spread: Floats, weight: Floats, bits: int):
        self._y, self._targets, self._spread, self._weight = y, targets, spread, weight
        rows, group = y.shape
        self._bits, self._levels = bits, tables.codebook(bits, group)
        self._boundaries = tables.boundaries(bits, group)
        self._root, self._inverse_root = np.float32(np.sqrt(group)), np.float32(1 / np.sqrt(group))
        self._loss = np.full(rows, np.inf, np.float32)
        self._norm = np.zeros(rows, np.float32)
        self._codes = np.full((rows, group), (1 << (bits - 1)) - 1, np.uint8)
        self._errors = np.zeros((rows, group), np.float32)

    def choose(self, norm_dtype: str) -> tuple[NDArray[np.uint8], Floats, Floats]:
        """Codes, norms, what columns are off: (rows, group) uint8, (rows,), (rows, group)"""
        size = np.sqrt(reference.sum_in_index_order(self._targets * self._targets))
        _, gain = reference.search(np.abs(self._targets), size, self._bits)
        for ratio in RATIOS:
            scale = gain * np.float32(ratio)
            self._try(storable_norms(scale * self._inverse_root, norm_dtype))
        norm = storable_norms(self._refitted() * self._inverse_root, norm_dtype)
        self._try(norm, norm > 0)
        values = (self._norm * self._root)[:, None] * self._levels[self._codes]
        is_good = self._loss < np.inf
        delta = np.where(is_good[:, None], self._y - values, np.float32(0))
        return self._codes, np.where(is_good, self._norm, np.float32(np.inf)), delta

    def _try(self, norm: Floats, allowed: NDArray[np.bool_] | bool = True) -> None:
        """Code with these norms; rows that lose less than so far keep what comes out."""
        scale = norm * self._root
        targets, loss = self._targets.copy(), np.zeros_like(norm)
        codes, errors = np.empty_like(self._codes), np.empty_like(targets)
        for j, row in enumerate(self._spread):
            column = targets[:, j : j + 1]
            codes[:, j] = reference.nearest_codes(column, scale, self._boundaries)[:, 0]
            value = scale * self._levels[codes[:, j]]
            errors[:, j] = targets[:, j] - value
            loss += self._weight[j] * (errors[:, j] * errors[:, j])
            targets[:, j + 1 :] += (self._y[:, j] - value)[:, None] * row[j + 1 :]
        better = (loss < self._loss) & allowed
        self._loss = np.where(better, loss, self._loss)
        self._norm = np.where(better, norm, self._norm)
        self._codes = np.where(better[:, None], codes, self._codes)
        self._errors = np.where(better[:, None], errors, self._errors)

    def _refitted(self) -> Floats:
        """The scale at which these codes lose least: errors are linear in it.  (rows,)"""
        reached = self._levels[self._codes]
        numerator, denominator = np.zeros((2, len(reached)), np.float32)
        for j, row in enumerate(self._spread):
            reached[:, j + 1 :] += self._levels[self._codes[:, j], None] * row[j + 1 :]
            numerator += self._weight[j] * (self._errors[:, j] * reached[:, j])
            denominator += self._weight[j] * (reached[:, j] * reached[:, j])
        scale: Floats = self._norm * self._root + numerator / denominator
        return scale


def storable_norms(norms: Floats, dtype: str) -> Floats:
    """Norms as `dtype` keeps them, or, if F16 loses them, as they are.  (n,) float32"""
    if dtype == "F32":
        return norms
    held = (norms >= _SMALLEST) & (norms < _TOO_LARGE)
    return np.where(held, norms.astype(np.float16).astype(np.float32), norms)
