"""What module.cpp offers; backend.py is its only user."""

from typing import Any

from numpy import float64, int64, uint8
from numpy.typing import NDArray

from tq3.codec.reference import Floats, Words

class Tables:
    def __init__(
        self,
        *,
        bits: int,
        group: int,
        levels: Floats,
        boundaries: Floats,
        d1: Floats,
        d2: Floats,
        root_group: float,
        inverse_root_group: float,
    ) -> None: ...

class Trellis:
    def __init__(
        self,
        tables: Tables,
        *,
        first: Floats,
        second: Floats,
        rms: float,
        from_norm: float,
        from_peak: float,
        unit: float,
    ) -> None: ...

class Kernels:
    @property
    def name(self) -> str: ...
    def encode(
        self,
        tables: Tables,
        words: Words,
        dtype: str,
        packed: NDArray[uint8],
        norms: Floats,
        scale: str,
        trellis: Trellis | None,
    ) -> None: ...
    def decode(
        self,
        tables: Tables,
        packed: NDArray[uint8],
        norms: Floats,
        words: Words,
        dtype: str,
        trellis: Trellis | None,
    ) -> None: ...
    def cast(self, words: Words, dtype: str, out: Words, out_dtype: str) -> int: ...
    def dequantize(
        self,
        kind: str,
        bits: int,
        block: int,
        scale_dtype: str,
        is_divided: bool,
        codes: NDArray[uint8],
        scales: NDArray[Any],
        lines: NDArray[int64],
        out: Floats,
        zero_points: NDArray[uint8] | None,
        global_scale: Floats | None,
    ) -> None: ...
    def encode_calibrated(
        self,
        tables: Tables,
        words: Words,
        dtype: str,
        first_group: int,
        order: NDArray[int64],
        spread: Floats,
        weight: Floats,
        half_norms: bool,
        packed: NDArray[uint8],
        norms: Floats,
    ) -> None: ...
    def decompose(self, matrix: NDArray[float64]) -> None: ...

def kernels_that_run_here() -> list[Kernels]: ...
