"""What each kind of case gives on a device, and what it must give.

The latter is computed on the processor, by `tq3.runtime.reference` and `tq3.runtime.generic`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu.cases import Case, Inputs
from gpu.timing import Through

from tq3.format.layout import GroupLayout
from tq3.runtime import arithmetic as fixed
from tq3.runtime import generic, reference
from tq3.runtime.cuda import calls, layout, linear, many, pairs
from tq3.runtime.cuda.launches import Launcher
from tq3.runtime.modules import PackedExperts, PackedRows, PackedWeight

Results = list[torch.Tensor]
# Rows of a real shape that are compared: the reference is slow.
SAMPLED_ROWS = 128


def _tiles(case: Case, inputs: Inputs, device: torch.device) -> layout.Tiles:
    packed, norms = inputs.packed.to(device), inputs.norms.to(device)
    if case.layers == 1:
        packed, norms = packed[0], norms[0]
    return layout.repack(packed, norms, case.bits, case.group)


def _quantised(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    x, widths = inputs.x.to(device), (case.bits, case.group, case.rotation)
    quantised, worths = calls.quantise(on, x, case.n, *widths)
    return [layout.integers(quantised), worths.T]


def _reference_integers(case: Case, inputs: Inputs) -> Results:
    rotated = reference.rotate(inputs.x, case.n, case.group, case.rotation)
    integers, scales = reference.quantise(rotated)
    worths = scales * fixed.unit(case.bits, case.group, case.rotation)
    missing = layout.padded_groups(case.n, case.group) - case.n
    padded = F.pad(integers, (0, 0, 0, missing)).flatten(1)
    return [padded, F.pad(worths, (0, missing))]


def _multiplied(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    sized = Through(on, case.processors)
    widths = case.rows, case.group, case.rotation
    tiles = _tiles(case, inputs, device)
    return [linear.linear(sized, inputs.x.to(device), tiles, *widths)]


def _reference_product(case: Case, inputs: Inputs) -> Results:
    widths = case.bits, case.group, case.rotation or case.group
    y = inputs.x.new_empty(case.tokens, case.rows)
    for expert in inputs.experts.unique().tolist():
        mine = inputs.experts == expert
        layer = inputs.packed[expert], inputs.norms[expert]
        y[mine] = reference.linear(inputs.x[mine], *layer, *widths)
    return [y]


def _through_experts(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    x, experts = inputs.x.to(device), inputs.experts.to(device)
    layers, widths = _tiles(case, inputs, device), (case.rows, case.group, case.rotation)
    routing = pairs.route(experts, len(layers.words), case.group)
    return [pairs.multiply(on, x, layers, routing, *widths)]


def _sample(case: Case) -> torch.Tensor:
    rng = torch.Generator().manual_seed(case.number)
    return torch.randperm(case.rows, generator=rng)[:SAMPLED_ROWS]


def _sampled(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    x, widths = inputs.x.to(device), (case.rows, case.group, case.rotation)
    y = linear.linear(on, x, _tiles(case, inputs, device), *widths)
    return [y.cpu()[:, _sample(case)]]


def _reference_sample(case: Case, inputs: Inputs) -> Results:
    rows = _sample(case)
    packed = inputs.packed.view(case.rows, case.n, -1)[rows].flatten(0, 1)
    layer = packed, inputs.norms[0, rows]
    return [reference.linear(inputs.x, *layer, case.bits, case.group, case.rotation)]


def _rotated(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    return [many.rotate(on, inputs.x.to(device), case.n, case.group, case.rotation)]


def _generic_rotated(case: Case, inputs: Inputs) -> Results:
    return [generic.rotate(inputs.x, case.n, case.group, case.rotation).to(case.dtype)]


def _decoded(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    shape = case.rows, case.n * case.group
    weights = torch.empty(shape, dtype=case.dtype, device=device)
    many.decode(on, _tiles(case, inputs, device), case.group, weights)
    return [weights]


def _generic_decoded(case: Case, inputs: Inputs) -> Results:
    weights = generic.decode(inputs.packed[0], inputs.norms[0], case.bits, case.group)
    return [weights.to(case.dtype)]


def _is_near(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    """Whether a product by torch's GEMM is within its rounding, where the exact one is finite."""
    x, widths = inputs.x.to(device), (case.rows, case.n, case.group, case.rotation)
    found = many.multiply_decoded(on, _tiles(case, inputs, device), x, *widths).cpu().double()
    left = _generic_rotated(case, inputs)[0].double()
    right = _generic_decoded(case, inputs)[0].double().T
    exact, size = left @ right, left.abs() @ right.abs()
    bound = max(2.0**-16, torch.finfo(case.dtype).eps) * size
    overflows = size > torch.finfo(case.dtype).max
    return [((found - exact).abs() <= bound) | ~exact.isfinite() | overflows]


def _all_near(case: Case, inputs: Inputs) -> Results:
    return [torch.ones(case.tokens, case.rows, dtype=torch.bool)]


def module(kind: type[PackedWeight], case: Case, inputs: Inputs) -> PackedWeight:
    """On the processor, with the case's codes and norms."""
    lead = (case.layers,) if case.layers > 1 else ()
    shape = GroupLayout((*lead, case.rows, case.columns), case.bits, case.group)
    weight = kind(shape, dtype=case.dtype)
    weight.tq_packed.data.copy_(inputs.packed.view(weight.tq_packed.shape))
    weight.tq_norms.data.copy_(inputs.norms.view(weight.tq_norms.shape))
    return weight


def _by_module(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    return [module(PackedWeight, case, inputs).to(device)(inputs.x.to(device))]


def _by_experts(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    weight = module(PackedExperts, case, inputs).to(device)
    return [weight(inputs.x.to(device), inputs.experts.to(device))]


def _looked_up(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    weight = module(PackedRows, case, inputs).to(device)
    return [weight(torch.arange(case.rows, device=device))]


def _reference_rows(case: Case, inputs: Inputs) -> Results:
    layer = inputs.packed[0], inputs.norms[0], case.bits, case.group, case.columns
    return [reference.embedding(torch.arange(case.rows), *layer, case.dtype)]


def _saved(case: Case, inputs: Inputs, on: Launcher, device: torch.device) -> Results:
    return list(module(PackedWeight, case, inputs).to(device).state_dict().values())


def _as_loaded(case: Case, inputs: Inputs) -> Results:
    return [inputs.packed[0], inputs.norms[0]]


Found = Callable[[Case, Inputs, Launcher, torch.device], Results]
Expected = Callable[[Case, Inputs], Results]
KINDS: dict[str, tuple[Found, Expected]] = {
    "quantise": (_quantised, _reference_integers),
    "multiply": (_multiplied, _reference_product),
    "split": (_multiplied, _reference_product),
    "experts": (_through_experts, _reference_product),
    "rotate": (_rotated, _generic_rotated),
    "decode": (_decoded, _generic_decoded),
    "decoded product": (_is_near, _all_near),
    "module": (_by_module, _reference_product),
    "module of experts": (_by_experts, _reference_product),
    "module of rows": (_looked_up, _reference_rows),
    "saved module": (_saved, _as_loaded),
    "real shape": (_sampled, _reference_sample),
}
