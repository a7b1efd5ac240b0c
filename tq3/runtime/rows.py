"""Rows of a packed matrix as the numbers that the format defines, for layers that look rows up."""

from __future__ import annotations

import numpy as np
import torch

from tq3.codec.backend import get_backend
from tq3.runtime import arithmetic as fixed
from tq3.runtime import generic

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def decode(
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(rows, columns) of dtype, the codec's values rounded once, on the tensors' device.

    packed: the bytes of rows * n groups, in any shape; norms: (rows, n) float32
    """
    groups = packed.view(norms.numel(), group * bits // 8)
    if packed.is_cpu:
        return _by_the_codec(groups, norms, bits, group, columns, dtype)
    codes = generic.unpack(groups, bits)
    return decode_codes(codes, norms, bits, group, columns, dtype)


def decode_codes(
    codes: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Decode codes, (rows * n, group), by torch's operations.

    Operation for operation as `tq3.codec.reference.decode`, so to the same bits.
    """
    first, second = fixed.signs(group, codes.device)
    levels = fixed.codebook(bits, group, codes.device)[codes]
    factor = float(np.float32(1 / np.sqrt(group)))
    unit = fixed.transform(levels * second, group) * factor * first
    weights = (unit * norms.reshape(-1, 1)).reshape(len(norms), -1)
    return weights[:, :columns].to(dtype).contiguous()


def _by_the_codec(
    packed: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    out = torch.empty(len(norms), columns, dtype=dtype)
    words = out.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    unsigned = words.view(np.dtype(f"u{words.itemsize}"))
    get_backend().decode(packed.numpy(), norms.numpy(), bits, group, unsigned, _NAMES[dtype])
    return out
