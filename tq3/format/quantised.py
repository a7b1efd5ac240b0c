"""How a quantised source stores one weight: its codes, and the scales that make numbers of them."""

from __future__ import annotations

from dataclasses import dataclass

# e4m3: a byte each. e2m1: two codes in a byte, the low nibble first, scales that are powers of two.
# nvfp4: the same codes, scales in E4M3 and one global scale. packed_int: a little-endian stream of
# bits in each row, in whole words of 32 bits, less 2**(bits-1) or less a zero point.
KINDS = ("e4m3", "e2m1", "nvfp4", "packed_int")


@dataclass(frozen=True, slots=True)
class Encoding:
    """What decodes one weight of shape (..., rows, columns).

    bits: of a code
    block: rows and columns of weights that share a scale; the last ones may be cut off
    scale_dtype: of the scales as a header names it; U8 are the exponents of F8_E8M0
    is_divided: nvfp4's global scale is the inverse of what multiplies
    has_zero_points: packed_int's, one for each scale
    is_signed: packed_int's bytes are stored in two's complement, and zero points a byte each; with
        their highest bits turned they are codes
    """

    kind: str
    bits: int
    block: tuple[int, int]
    scale_dtype: str
    is_divided: bool = False
    has_zero_points: bool = False
    is_signed: bool = False

    def __post_init__(self) -> None:
        assert self.kind in KINDS

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a matrix."""
        return -(-rows // self.block[0]), -(-columns // self.block[1])

    def row_bytes(self, columns: int) -> int:
        """Bytes of the codes of a row."""
        n_bytes = -(-columns * self.bits // 8)
        return -(-n_bytes // 4) * 4 if self.kind == "packed_int" else n_bytes

    @property
    def label(self) -> str:
        """FP8, FP4, NVFP4, INT4."""
        names = {"e4m3": "FP8", "e2m1": "FP4", "nvfp4": "NVFP4"}
        return names.get(self.kind) or f"INT{self.bits}"
