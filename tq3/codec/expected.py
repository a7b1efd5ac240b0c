"""The error that the format makes on Gaussian weights, and how far from it needs a second look.

Measured by scripts/expected_errors.py over 50 million Gaussian weights each; docs/verify.md says
what other weights give.
"""

from __future__ import annotations

import math

from tq3.format.recipe import CALIBRATED

# How codes are chosen -> (bits, group) -> mean relative squared error of a group, and its standard
# deviation.
_SCALAR = {
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
# The same of trellis codes, over 1 to 8 million weights each.
_TRELLIS = {
    "norm": {
        (3, 32): (0.0192, 0.0029),
        (3, 64): (0.0194, 0.0022),
        (3, 128): (0.0197, 0.0018),
        (3, 256): (0.0202, 0.0015),
        (4, 32): (0.0049, 0.0007),
        (4, 64): (0.0048, 0.0005),
        (4, 128): (0.0048, 0.0004),
        (4, 256): (0.0049, 0.0003),
    },
    "search": {
        (3, 32): (0.0176, 0.0024),
        (3, 64): (0.0184, 0.0020),
        (3, 128): (0.0191, 0.0017),
        (3, 256): (0.0198, 0.0015),
        (4, 32): (0.0042, 0.0005),
        (4, 64): (0.0044, 0.0004),
        (4, 128): (0.0046, 0.0003),
        (4, 256): (0.0048, 0.0003),
    },
}
_BY_CODE = {"scalar": _SCALAR, "trellis": _TRELLIS}
# What weights that are not Gaussian add at most: 9 % was the largest of twenty distributions.
_SYSTEMATIC = 0.10
_STANDARD_ERRORS = 6.0
# Under second moments it is not the weights' own error that is kept small. Of two models' tensors
# the worst had 1.3 times the search's, of 2.4 million groups 9.2 times: docs/calibration.md.
_CALIBRATED, _CALIBRATED_GROUP = 2.0, 16.0


def expected_error(scale: str, bits: int, group: int, code: str = "scalar") -> float:
    """Relative squared error of Gaussian weights.

    scale: one of `format.recipe.SCALES`, or CALIBRATED: then the error of a search, which it has
    where all inputs are alike and independent
    code: one of `format.recipe.CODES`
    """
    return _BY_CODE[code]["search" if scale == CALIBRATED else scale][bits, group][0]


def error_limit(scale: str, bits: int, group: int, n_groups: float, code: str = "scalar") -> float:
    """The largest error of a tensor of `n_groups` groups of like norm that is not remarkable."""
    if scale == CALIBRATED:
        return _CALIBRATED * expected_error(scale, bits, group, code)
    mean, deviation = _BY_CODE[code][scale][bits, group]
    return mean * (1 + _SYSTEMATIC) + _STANDARD_ERRORS * deviation / math.sqrt(n_groups)


def group_error_limit(
    bits: int, group: int, code: str = "scalar", *, calibrated: bool = False
) -> float:
    """The largest relative error of a single group that needs no second look.

    However it was coded, unless under second moments: then what no coding of ours has made. One of
    200 Gaussian ones is beyond it at the most. No search makes larger errors than the norm.
    """
    if calibrated:
        return _CALIBRATED_GROUP * expected_error(CALIBRATED, bits, group, code)
    return error_limit("norm", bits, group, 1, code)
