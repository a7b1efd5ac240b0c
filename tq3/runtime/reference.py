"""What a packed layer computes, to the bit: short, slow, and what every kernel must equal.

docs/kernels.md says the same in words. Everything is float32 or an exact integer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tq3.codec import reference as codec
from tq3.runtime import arithmetic as fixed


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    rotation: int | None = None,
) -> torch.Tensor:
    """x times the transposed weight, in x's dtype.

    x: (tokens, columns) bfloat16, float16 or float32
    packed: (rows * n, group * bits / 8) uint8; norms: (rows, n) float32; n * group >= columns
    rotation: size of the Walsh-Hadamard blocks, 32 to group; the group's by default
    Returns (tokens, rows).
    """
    rows, n = norms.shape
    rotation = rotation or group
    values, scales = quantise(rotate(x, n, group, rotation))
    levels = torch.tensor(fixed.integer_codebook(bits), dtype=torch.int32)
    weights = levels[unpack(packed, bits).long()].reshape(rows, n, group)
    products = torch.einsum("tni,rni->trn", values.double(), weights.double())  # exact
    worth = scales * fixed.unit(bits, group, rotation)
    terms = (products.float() * worth[:, None, :]) * norms
    return add_up(terms).to(x.dtype)


def embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows of the weight that the format defines, each value rounded once.  (*ids.shape, columns)

    packed, norms: as for `linear`, on the processor
    """
    weights = codec.decode(packed.numpy(), norms.numpy(), bits, group, columns)
    return torch.from_numpy(weights.copy())[ids].to(dtype)


def rotate(x: torch.Tensor, n: int, group: int, rotation: int) -> torch.Tensor:
    """D2 H D1 of each group, the transform without its factor.  (tokens, n, group) float32"""
    first, second = fixed.signs(group, x.device)
    padded = F.pad(x.float(), (0, n * group - x.shape[-1]))
    groups = padded.reshape(-1, n, group)
    return fixed.transform(groups * first, rotation) * second


def quantise(rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers up to 32512 and a scale for each group.  (tokens, n, group) int32, (tokens, n)

    A group with a value that is not finite gets zeros and the scale NaN.
    """
    largest = rotated.abs().amax(-1)
    finite = largest.isfinite()
    is_some = finite & (largest >= fixed.SMALLEST)
    # Two tensors: torch divides by a number, and a number by a tensor, through its reciprocal.
    most, zero = torch.full_like(largest, fixed.LARGEST), torch.zeros_like(largest)
    steps = torch.where(is_some, most / largest, zero)
    integers = torch.where(finite[..., None], rotated * steps[..., None], 0.0).round()
    scales = torch.where(is_some, largest / most, zero)
    scales = torch.where(finite, scales, torch.full_like(largest, torch.nan))
    return integers.clamp(-fixed.LARGEST, fixed.LARGEST).int(), scales


def add_up(terms: torch.Tensor) -> torch.Tensor:
    """The sum over groups: term g goes to partial sum g mod 8, and those are added in pairs."""
    missing = -terms.shape[-1] % fixed.PARTIAL_SUMS
    steps = F.pad(terms, (0, missing)).unflatten(-1, (-1, fixed.PARTIAL_SUMS))
    sums = torch.zeros_like(steps[..., 0, :])
    for step in steps.unbind(-2):
        sums = sums + step
    for half in (4, 2, 1):
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Code i of a group lies in bits i * bits and following.  (groups, group) uint8"""
    planes = (packed[:, :, None] >> torch.arange(8, device=packed.device)) & 1
    weights = 1 << torch.arange(bits, device=packed.device)
    return (planes.reshape(len(packed), -1, bits) * weights).sum(-1).to(torch.uint8)
