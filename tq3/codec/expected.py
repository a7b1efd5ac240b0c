"""The error that the format makes on Gaussian weights, and how far from it needs a second look.

Measured over 50 million Gaussian weights each; docs/verify.md says what other weights give.
"""

from __future__ import annotations

import math

# (bits, group) -> mean relative squared error of a group, and its standard deviation.
_GAUSSIAN = {
    (2, 32): (0.1119, 0.0305),
    (2, 64): (0.1165, 0.0227),
    (2, 128): (0.1188, 0.0164),
    (2, 256): (0.1200, 0.0118),
    (3, 32): (0.0310, 0.0094),
    (3, 64): (0.0328, 0.0080),
    (3, 128): (0.0338, 0.0062),
    (3, 256): (0.0343, 0.0046),
    (4, 32): (0.0083, 0.0024),
    (4, 64): (0.0089, 0.0025),
    (4, 128): (0.0092, 0.0021),
    (4, 256): (0.0093, 0.0016),
}
# What weights that are not Gaussian add at most: 9 % was the largest of twenty distributions.
_SYSTEMATIC = 0.10
_STANDARD_ERRORS = 6.0


def expected_error(bits: int, group: int) -> float:
    """Relative squared error of Gaussian weights."""
    return _GAUSSIAN[bits, group][0]


def error_limit(bits: int, group: int, n_groups: float) -> float:
    """The largest error of a tensor of `n_groups` groups of like norm that is not remarkable."""
    mean, deviation = _GAUSSIAN[bits, group]
    return mean * (1 + _SYSTEMATIC) + _STANDARD_ERRORS * deviation / math.sqrt(n_groups)


def group_error_limit(bits: int, group: int) -> float:
    """The same for a single group: one of 200 Gaussian ones is beyond it at the most."""
    return error_limit(bits, group, 1)
