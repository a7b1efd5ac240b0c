"""The error that the format makes on Gaussian weights, and how far from it needs a second look.

Measured by scripts/expected_errors.py over 50 million Gaussian weights each; docs/verify.md says
what other weights give.
"""

from __future__ import annotations

import math

from tq3.format.recipe import CALIBRATED

# How codes are chosen -> (bits, group) -> mean relative squared error of a group, and its standard
# deviation.
_GAUSSIAN = {
    "norm": {
        (2, 32): (0.1118, 0.0295),
        (2, 64): (0.1165, 0.0223),
        (2, 128): (0.1188, 0.0163),
        (2, 256): (0.1200, 0.0117),
        (3, 32): (0.0310, 0.0091),
        (3, 64): (0.0328, 0.0079),
        (3, 128): (0.0338, 0.0062),
        (3, 256): (0.0343, 0.0046),
        (4, 32): (0.0083, 0.0024),
        (4, 64): (0.0089, 0.0024),
        (4, 128): (0.0092, 0.0021),
        (4, 256): (0.0094, 0.0017),
    },
    "search": {
        (2, 32): (0.1049, 0.0261),
        (2, 64): (0.1110, 0.0202),
        (2, 128): (0.1142, 0.0151),
        (2, 256): (0.1159, 0.0109),
        (3, 32): (0.0256, 0.0066),
        (3, 64): (0.0292, 0.0063),
        (3, 128): (0.0316, 0.0054),
        (3, 256): (0.0330, 0.0042),
        (4, 32): (0.0060, 0.0012),
        (4, 64): (0.0070, 0.0012),
        (4, 128): (0.0078, 0.0012),
        (4, 256): (0.0085, 0.0011),
    },
}
# What weights that are not Gaussian add at most: 9 % was the largest of twenty distributions.
_SYSTEMATIC = 0.10
_STANDARD_ERRORS = 6.0
# Under second moments it is not the weights' own error that is kept small. Of two models' tensors
# the worst had 1.3 times the search's, of 2.4 million groups 9.2 times: docs/calibration.md.
_CALIBRATED, _CALIBRATED_GROUP = 2.0, 16.0


def expected_error(scale: str, bits: int, group: int) -> float:
    """Relative squared error of Gaussian weights; `scale`: one of `format.recipe.SCALES`.

    Of calibrated codes, those of weights whose inputs are alike and independent.
    """
    return _GAUSSIAN["search" if scale == CALIBRATED else scale][bits, group][0]


def error_limit(scale: str, bits: int, group: int, n_groups: float) -> float:
    """The largest error of a tensor of `n_groups` groups of like norm that is not remarkable."""
    if scale == CALIBRATED:
        return _CALIBRATED * expected_error(scale, bits, group)
    mean, deviation = _GAUSSIAN[scale][bits, group]
    return mean * (1 + _SYSTEMATIC) + _STANDARD_ERRORS * deviation / math.sqrt(n_groups)


def group_error_limit(bits: int, group: int, scale: str = "norm") -> float:
    """The largest relative error of a single group that needs no second look.

    However it was coded, unless under second moments: then what no coding of ours has made. One of
    200 Gaussian ones is beyond it at the most. No search makes larger errors than the norm.
    """
    if scale == CALIBRATED:
        return _CALIBRATED_GROUP * expected_error(scale, bits, group)
    return error_limit("norm", bits, group, 1)
