"""What a pass costs, told before it begins: operations counted, their rate measured briefly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

import torch

from tq3.codec.calibrated import BLOCK
from tq3.evaluation.skeleton import Skeleton
from tq3.units import duration

# Products of this size are measured: what attention and MLPs of small models have.
_TOKENS, _WIDTH = 512, 1024
_LEAST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """operations: multiplications and additions; rate: of them a second, as measured here."""

    n_tokens: int
    operations: float
    rate: float
    device: str

    @property
    def seconds(self) -> float:
        return self.operations / self.rate

    def __str__(self) -> str:
        work = f"{self.operations / 1e12:.3g} TFLOP at {self.rate / 1e9:.3g} GFLOPS"
        return f"{self.n_tokens} tokens through every layer: {work} on {self.device}, " + (
            f"about {duration(self.seconds)} and the reading of the weights"
        )


def cost_of(skeleton: Skeleton, n_tokens: int, device: torch.device) -> Cost:
    """Two operations a weight and token, and two for each pair of columns of a block.

    Of a stack of experts each token passes as many as config.json says; attention is left out.
    """
    config = skeleton.model.config.get_text_config()
    operations = 0.0
    for part in skeleton.used:
        for name in part.parameters if part.is_layer else ():
            shape = tuple(skeleton.parameter(name).shape)
            if len(shape) >= 2:
                passed = getattr(config, "num_experts_per_tok", 1) if len(shape) == 3 else 1
                rows, columns = shape[-2:]
                operations += 2.0 * n_tokens * passed * columns * (rows + min(columns, BLOCK))
    return Cost(n_tokens, operations, _rate(device), str(device))


def _rate(device: torch.device) -> float:
    left, right = (
        torch.ones(_TOKENS, _WIDTH, device=device),
        torch.ones(_WIDTH, _WIDTH, device=device),
    )
    done, seconds = 0.0, 0.0
    float((left @ right)[0, 0])  # threads and kernels are made
    start = time.perf_counter()
    while seconds < _LEAST_SECONDS:
        float((left @ right)[0, 0])
        done += 2.0 * prod(left.shape) * right.shape[1]
        seconds = time.perf_counter() - start
    return done / seconds
