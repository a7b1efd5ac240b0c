"""Second moments of inputs for tests of calibrated codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tq3.codec import calibrated
from tq3.codec.calibrated import Feedback


def correlated(cols: int, seed: int = 0) -> NDArray[np.float64]:
    """Of uneven channels that share much.  (cols, cols)"""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.standard_normal(cols))
    mixed = np.eye(cols) + rng.standard_normal((cols, cols)) / np.sqrt(4 * cols)
    inputs = rng.standard_normal((2 * cols, cols)) * sizes @ mixed
    return inputs.T @ inputs / len(inputs)


def feedback_of(moments: NDArray[np.float64], group: int, damping: float = 0.3) -> Feedback:
    """By the reference, of one block that is all of the input."""
    mean = float(np.trace(moments)) / len(moments)
    order, matrix = calibrated.rotated_moments(moments, mean, group, damping)
    calibrated.decompose(matrix)
    return calibrated.feedback(order, matrix)
