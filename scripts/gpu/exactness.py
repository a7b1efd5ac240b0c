"""Cases run on a device, compared with what they must give bit for bit, and counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from gpu.cases import Case, draw
from gpu.kinds import KINDS, Results
from gpu.section import Section

from tq3.runtime.cuda.calls import Launcher

MOST_LISTED = 20


class Outcome(NamedTuple):
    """fault: what differed or went wrong; empty where all bits are equal."""

    case: Case
    fault: str


def check(cases: Iterable[Case], on: Launcher, device: torch.device) -> list[Outcome]:
    """Run each case; one that fails does not end the others."""
    outcomes = []
    for case in cases:
        inputs = draw(case)
        found, expected = KINDS[case.kind]
        try:
            results = [part.cpu() for part in found(case, inputs, on, device)]
            fault = difference(results, expected(case, inputs))
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(case, fault))
    return outcomes


def difference(found: Results, expected: Results) -> str:
    """Bit for bit, any NaN like another; empty where nothing differs."""
    for one, other in zip(found, expected, strict=True):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{tuple(one.shape)} of {one.dtype}, not {tuple(other.shape)} of {other.dtype}"
        differs = _bits(one) != _bits(other)
        if one.is_floating_point():
            differs &= ~(one.isnan() & other.isnan())
        if differs.any():
            first = tuple(differs.nonzero()[0].tolist())
            values = f"{one[first].item()!r}, not {other[first].item()!r}"
            return f"{int(differs.sum())} of {differs.numel()} values differ, {first}: {values}"
    return ""


def _bits(values: torch.Tensor) -> torch.Tensor:
    words = {2: torch.int16, 4: torch.int32}
    return values.view(words[values.itemsize]) if values.is_floating_point() else values


def section(outcomes: list[Outcome]) -> Section:
    """How many cases of each kind are equal; the first ones that aren't are listed."""
    faults = [f"{outcome.fault}: {outcome.case}" for outcome in outcomes if outcome.fault]
    kinds = dict.fromkeys(outcome.case.kind for outcome in outcomes)
    rows = [
        {"what": kind, "cases": len(of_kind), "equal": sum(not fault for _, fault in of_kind)}
        for kind in kinds
        for of_kind in ([outcome for outcome in outcomes if outcome.case.kind == kind],)
    ]
    more = [f"and {len(faults) - MOST_LISTED} more"] if len(faults) > MOST_LISTED else []
    note = (
        f"{len(outcomes) - len(faults)} of {len(outcomes)} cases are equal: bit for bit, but for "
        "decoded products, which torch's GEMM rounds"
    )
    return Section("Results against the reference", rows, [note], faults[:MOST_LISTED] + more)
