"""How long calibrated codes take on this machine, told before they are made."""

from __future__ import annotations

import time
from math import prod

import numpy as np

from tq3.codec import calibrated
from tq3.codec.backend import Backend
from tq3.codec.calibrated import BLOCK
from tq3.format.recipe import CALIBRATED
from tq3.plan.plan import Plan
from tq3.units import count, duration

_ROWS = 64


def coding_cost(plan: Plan, backend: Backend, workers: int) -> str:
    """A sentence on the weights that are coded under moments, by a rate measured for a moment."""
    layouts = [task.layout for task in plan.tasks if task.layout and task.scale == CALIBRATED]
    weights = sum(prod(layout.shape) for layout in layouts)
    if not weights:
        return "no scalar code has moments: all is coded as without --calibrate"
    seconds = weights / _rate(backend, layouts[0].bits, layouts[0].group)
    return (
        f"{count(weights)} weights are coded under moments: {duration(seconds)} of one processor, "
        f"about {duration(seconds / workers)} with {workers}"
    )


def _rate(backend: Backend, bits: int, group: int) -> float:
    """Weights a second of one thread, by one block that nothing is read for."""
    order, matrix = calibrated.rotated_moments(np.eye(BLOCK), 1.0, group, 1.0)
    backend.decompose(matrix)
    feedback = calibrated.feedback(order, matrix)
    words = np.random.default_rng(0).standard_normal((_ROWS, BLOCK), np.float32).view(np.uint32)
    packed = np.empty((_ROWS * len(order), group * bits // 8), np.uint8)
    norms = np.empty((_ROWS, len(order)), np.float32)
    start = time.perf_counter()
    backend.encode_calibrated(words, "F32", bits, group, packed, norms, 0, feedback, "F32")
    return words.size / max(time.perf_counter() - start, 1e-9)
