"""The factors of equalized columns in tq_config.json: an exponent for each channel.

A channel is what one tensor puts out and others take in. Its factor multiplies the columns of those
that take it and divides what puts it out, so the model computes the same. Factors are powers of
2 ** (1 / STEPS): a signed byte says one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType

from tq3.errors import BadInput

STEPS = 8
# A factor of 16: only channels that hardly count are further from the others.
LARGEST = 4 * STEPS
# Name of the norm or of the matrix whose input it is -> exponents of its channels, signed bytes.
Factors = Mapping[str, bytes]
NO_FACTORS: Factors = MappingProxyType({})


def factors_record(factors: Factors) -> dict[str, str]:
    """The factors as JSON."""
    return {name: base64.b64encode(exponents).decode() for name, exponents in factors.items()}


def factors_from_record(record: Mapping[str, str], file: str) -> dict[str, bytes]:
    """The inverse of `factors_record`. Raises BadInput."""
    return {name: _exponents(name, text, file) for name, text in record.items()}


def _exponents(name: str, text: str, file: str) -> bytes:
    try:
        exponents = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("tq3.equalization: not base64", file=file, tensor=name) from None
    signed = memoryview(exponents).cast("b")
    if exponents and max(map(abs, signed)) > LARGEST:
        raise BadInput(
            "tq3.equalization: an exponent is too large",
            file=file,
            tensor=name,
            found=max(signed, key=abs),
            expected=f"-{LARGEST} to {LARGEST}",
        )
    return exponents
