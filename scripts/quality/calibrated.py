"""Codes under second moments, by the product's own encoder.

Moments are those of the checkpoint as it is, written by `tq3 calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from quality.equalize import Factors
from quality.ours import Coded, Format, Way
from tq3.codec.backend import get_backend
from tq3.moments.feedbacks import Feedbacks
from tq3.moments.reading import Moments
from tq3.storage.local import LocalFiles


def calibrated(file: Path, formats: Callable[[str], Format], factors: Factors | None = None) -> Way:
    """Every matrix in its format, under the moments of a file; `factors`: equalized first."""
    moments = Moments(LocalFiles(file.parent), file.name)

    def columns(name: str) -> np.ndarray | None:
        return factors.columns(name) if factors else None

    feedbacks = Feedbacks(moments, columns, get_backend())

    def code(name: str, weight: Tensor) -> Coded:
        written = formats(name)
        rows, cols = weight.shape
        n = -(-cols // written.group)
        packed = np.empty((rows * n, written.group * written.bits // 8), np.uint8)
        norms = np.empty((rows, n), np.float32)
        width = feedbacks.block_columns(name)
        words = weight.numpy().view(np.uint32)
        how = written.bits, written.group
        norm_dtype = {"float16": "F16", "float32": "F32"}[written.norms]
        for number, start in enumerate(range(0, cols, width)):
            feedback = feedbacks.get(name, 0, number, cols, written.group)
            first = start // written.group
            get_backend().encode_calibrated(
                words, "F32", *how, packed, norms, first, feedback, norm_dtype
            )
        return written.decoded(packed, norms, cols)

    return factors.way(code) if factors else code
