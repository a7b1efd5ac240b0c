"""Cases run on a device, compared with what they must give bit for bit."""

from __future__ import annotations

from functools import partial

import torch
from gpu import cases
from gpu.cases import Case
from gpu.kinds import KINDS, Results, module
from gpu.machine import Machine
from gpu.plan import Plan
from gpu.rows import Cases, Row

from tq3.runtime.modules import PackedWeight


def smoke(gpu: Machine, plan: Plan) -> Cases:
    """The machine; then one small case of each kind, and a graph that is replayed."""
    yield "machine", gpu.facts
    yield from few(gpu, plan)
    yield "a layer's graph, replayed", partial(_replayed, gpu)


def few(gpu: Machine, plan: Plan) -> Cases:
    """One small case of each kind."""
    yield from _compared(gpu, cases.one_of_each_kind(), None)


def serving(gpu: Machine, plan: Plan) -> Cases:
    """All cases of the instances that models are served with."""
    yield from _compared(gpu, [case for case in cases.all_cases() if case.is_served], plan.cases)


def others(gpu: Machine, plan: Plan) -> Cases:
    """All other instances."""
    left = [case for case in cases.all_cases() if not case.is_served]
    yield from _compared(gpu, left, plan.cases)


def _compared(gpu: Machine, chosen: list[Case], most: int | None) -> Cases:
    for case in chosen[:most]:
        yield str(case), partial(compare, gpu, case)


class Different(Exception):
    """Which bits differ from the reference's."""


def compare(gpu: Machine, case: Case) -> Row:
    """The kind of what is equal; raises Different."""
    inputs = cases.draw(case)
    found, expected = KINDS[case.kind]
    return _equal(case.kind, found(case, inputs, gpu.on, gpu.device), expected(case, inputs))


def _replayed(gpu: Machine) -> Row:
    """A module's graph, for other activations than the captured ones."""
    case = next(case for case in cases.one_of_each_kind() if case.kind == "module")
    inputs = cases.draw(case)
    weight = module(PackedWeight, case, inputs).to(gpu.device)
    x = inputs.x.to(gpu.device, copy=True)
    captured = gpu.capture(lambda: weight(x))
    x.copy_(x.flip(0))
    captured.replay()
    expected = KINDS[case.kind][1](case, inputs._replace(x=inputs.x.flip(0)))
    return _equal("graph", [captured.result], expected)


def _equal(kind: str, found: Results, expected: Results) -> Row:
    difference = different([part.cpu() for part in found], expected)
    if difference:
        raise Different(difference)
    return {"kind": kind, "equal": True}


def different(found: Results, expected: Results) -> str:
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
