"""From second moments to what codes need of them, each block made once for all who need it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tq3.cache import Cache
from tq3.codec import calibrated
from tq3.codec.backend import Backend
from tq3.codec.calibrated import BLOCK, Feedback
from tq3.errors import BadInput
from tq3.moments.reading import Moments

# Of feedback, 1 MiB a block: more than an input of a large model has.
_KEPT_BLOCKS = 96
KEPT_FEEDBACK_BYTES = _KEPT_BLOCKS * (4 * BLOCK * BLOCK)

# Factors by which the columns of a tensor are multiplied, (stack, columns), by its name.
Columns = Callable[[str], NDArray[np.float32] | None]


def unscaled(_: str) -> None:
    """The columns of tensors that are as in the source."""


class Feedbacks:
    """Feedback of any block of any tensor that has moments, for any number of threads.

    columns: factors of the tensors that are encoded; what they multiply is divided by these
    """

    def __init__(self, moments: Moments, columns: Columns, backend: Backend) -> None:
        self._moments, self._columns, self._backend = moments, columns, backend
        self._kept = Cache[tuple[object, ...], Feedback](_KEPT_BLOCKS)
        self._means: dict[tuple[object, ...], float] = {}
        self._lock = Lock()

    def block_columns(self, name: str) -> int:
        """Columns of a block of this tensor, of which only the last one may have fewer."""
        return self._moments.block_columns(self._moments.readers[name][0])

    def get(self, name: str, matrix: int, number: int, columns: int, group: int) -> Feedback:
        """Feedback of one block of columns, whose number this is, of one matrix of a tensor.

        matrix: its number in the stack `name`; columns: of the whole matrix
        group: weights that are rotated together
        """
        inputs = self._moments.readers[name]
        source = inputs[matrix if len(inputs) > 1 else 0]
        factors = self._factors(name, matrix)
        key = source, b"" if factors is None else factors.tobytes(), number, group
        return self._kept.get(key, lambda: self._make(source, factors, number, columns, group))

    def _factors(self, name: str, matrix: int) -> NDArray[np.float64] | None:
        found = self._columns(name)
        if found is None:
            return None
        factors: NDArray[np.float64] = found[matrix if len(found) > 1 else 0].astype(np.float64)
        return factors

    def _make(
        self,
        source: str,
        factors: NDArray[np.float64] | None,
        number: int,
        columns: int,
        group: int,
    ) -> Feedback:
        size = self._moments.block_columns(source)
        start = number * size
        here = slice(start, min(start + size, columns))
        found = self._moments.block(source, number, here.stop - start).astype(np.float64)
        if factors is not None:
            found = found / (factors[here, None] * factors[here])
        mean = self._mean(source, factors, columns)
        damping = self._moments.damping(source)
        order, matrix = calibrated.rotated_moments(found, mean, group, damping)
        self._backend.decompose(matrix)
        if not (matrix.diagonal() > 0).all():
            raise BadInput(
                "moments of no inputs: not positive definite",
                file=self._moments.file,
                tensor=source,
                fix="make the file anew with `tq3 calibrate`",
            )
        return calibrated.feedback(order, matrix)

    def _mean(self, source: str, factors: NDArray[np.float64] | None, columns: int) -> float:
        """Of the diagonal over all blocks, added in the order of columns."""
        key = source, b"" if factors is None else factors.tobytes()
        with self._lock:
            if key in self._means:
                return self._means[key]
        diagonals = [block.diagonal() for block in self._moments.blocks(source, columns)]
        diagonal = np.concatenate(diagonals).astype(np.float64)
        if factors is not None:
            diagonal = diagonal / factors**2
        mean = float(np.cumsum(diagonal)[-1]) / columns
        with self._lock:
            self._means[key] = mean
        return mean
