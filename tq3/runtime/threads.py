"""The threads that the compiled kernels use: torch's own.

So there is one pool in the process, as large as `torch.set_num_threads` says; torch before 2.10
does not lend it, and threads are started for each call of a large layer instead.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch

from tq3.runtime._linear import Threads


class _State:
    """Whether torch's pool may be used: a forked process lacks its threads but waits for them."""

    used = False
    lost = False

    @classmethod
    def forked(cls) -> None:
        cls.lost = cls.lost or cls.used
        _team.cache_clear()


def team() -> Threads:
    """A team of as many threads as torch uses."""
    _State.used = True
    return _team(torch.get_num_threads())


@cache
def _team(count: int) -> Threads:
    return Threads(0 if _State.lost else _torch_parallel_for(), count)


def _torch_parallel_for() -> int:
    function = getattr(ctypes.CDLL(torch._C.__file__), "torch_parallel_for", None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_State.forked)
