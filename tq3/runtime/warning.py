"""Warnings of what is slower than it could be."""

from __future__ import annotations

import warnings


def warn(message: str) -> None:
    """A UserWarning without a line of code: it is found deep in a host, at whatever call was first,
    and no line of the user's or of ours explains it.
    """
    warnings.warn_explicit(message, UserWarning, "<tq3>", 0)
