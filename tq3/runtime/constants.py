"""Tensors that a device keeps for good, and what must not happen first inside a CUDA graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from tq3.errors import UsageError


def constant(values: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The values on a device. Raises UsageError while a CUDA graph is captured.

    Made in a thread of its own: what the calling thread allocates may go to a pool of memory that
    is thrown away (vLLM's sleep), and may belong to its inference mode, which autograd refuses.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            refuse_in_a_capture("a constant of tq3's kernels")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.tensor, values, device=device).result()


def refuse_in_a_capture(what: str) -> None:
    """Raise UsageError where torch's current CUDA stream is being captured.

    A module can't be loaded there, and what is computed there has no value before the graph runs.
    """
    if torch.cuda.is_current_stream_capturing():
        raise UsageError(
            f"{what} is not on this device yet, and can't get there while a CUDA graph is captured",
            fix="call the layer once before the capture, with as many tokens of the same dtype",
        )
