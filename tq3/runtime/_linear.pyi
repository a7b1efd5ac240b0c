"""What module.cpp offers. Tensors are addresses, dtypes the numbers of `native.NUMBERS`."""

from numpy import int8
from numpy.typing import NDArray

from tq3.codec.reference import Floats

class Width:
    def __init__(
        self,
        *,
        bits: int,
        group: int,
        rotation: int,
        whole_levels: NDArray[int8],
        unit: float,
        levels: Floats,
        d1: Floats,
        d2: Floats,
        inverse_root_rotation: float,
    ) -> None: ...

class Threads:
    def __init__(self, torch_parallel_for: int, count: int) -> None: ...

class Kernels:
    @property
    def name(self) -> str: ...
    def linear(
        self,
        width: Width,
        threads: Threads,
        x: int,
        tokens: int,
        columns: int,
        dtype: int,
        packed: int,
        norms: int,
        rows: int,
        groups: int,
        out: int,
        /,
    ) -> None: ...
    def rotate(
        self,
        width: Width,
        threads: Threads,
        x: int,
        tokens: int,
        columns: int,
        dtype: int,
        groups: int,
        out_dtype: int,
        out: int,
        /,
    ) -> None: ...
    def decode(
        self,
        width: Width,
        threads: Threads,
        packed: int,
        norms: int,
        groups: int,
        first_row: int,
        last_row: int,
        out_dtype: int,
        out: int,
        /,
    ) -> None: ...

def kernels_that_run_here() -> list[Kernels]: ...
def multiplies_bf16_fast() -> bool: ...
