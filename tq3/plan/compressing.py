"""The plan of a compression: each tensor becomes packed codes and norms, or stays."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from types import MappingProxyType
from typing import Any

from tq3.errors import UsageError
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.config import MeasuredError, TqConfig, recipe_record
from tq3.format.equalization import NO_FACTORS, Factors
from tq3.format.header import TensorInfo
from tq3.format.layout import GroupLayout
from tq3.format.recipe import CALIBRATED, Recipe
from tq3.format.widths import Width
from tq3.plan.allocation import Allocation, Chosen, advice_on_target, fit
from tq3.plan.heads import AS_A_HEAD, heads_by_shape, with_tied_head
from tq3.plan.joined import keep_together, widen
from tq3.plan.learned import NOTHING_LEARNED, Learned
from tq3.plan.ordinary import check_ordinary
from tq3.plan.plan import Action, Plan, Task, arrange, cast_task, copy_task
from tq3.plan.policy import Decision, decide, why_exact
from tq3.plan.precision import dtype_where_kept, main_dtype
from tq3.plan.readers import substrings
from tq3.plan.routers import keep_routers

_Fates = Sequence[tuple[Located, Decision]]


def plan_compression(
    checkpoint: Checkpoint,
    recipe: Recipe,
    learned: Learned = NOTHING_LEARNED,
    calibrated: Collection[str] = (),
) -> Plan:
    """Decide every tensor's fate. Raises BadInput or UsageError.

    calibrated: tensors of which it is known what they multiply
    """
    check_ordinary(checkpoint)
    _check_globs(checkpoint, recipe)
    recipe = with_tied_head(recipe, checkpoint)
    main = main_dtype(tensor.nominal for tensor in checkpoint.tensors)
    infos = (tensor.nominal for tensor in checkpoint.tensors)
    decisions = {info.name: decide(info, recipe, main) for info in infos}
    if not recipe.only:
        decisions |= dict.fromkeys(heads_by_shape(checkpoint), Decision(False, AS_A_HEAD))
    is_quantised = bool(checkpoint.source_quantization)
    decisions = keep_routers(decisions, recipe, is_quantised=is_quantised)
    # Values never change a width: that would change the width of every other tensor.
    asked = _fates(checkpoint, keep_together(decisions))
    chosen, wider = widen(_choose_widths(asked, recipe, main))
    exact = learned.exact
    fates = _fates(checkpoint, keep_together(decisions, exact)) if exact else asked
    joined = {name: why for name, why in wider.items() if name not in exact}
    joined |= {t.info.name: decision.reason for t, decision in fates if decision.is_joined}
    tasks = (
        _task(
            tensor,
            replace(decision, reason=joined.get(tensor.info.name, decision.reason)),
            chosen.get(tensor.info.name),
            recipe,
            main,
            learned,
        )
        for tensor, decision in fates
    )
    under_moments = (_calibrated(each) if each.name in calibrated else each for each in tasks)
    return arrange(under_moments, recipe.max_shard_bytes, joined)


def _calibrated(task: Task) -> Task:
    """Coded row by row: errors are handed on along it. What is kept stays as it is, and so do
    trellises, whose weights hang together.
    """
    layout = task.layout
    if layout is None or layout.code != "scalar":
        return task
    return replace(task, units=layout.rows, scale=CALIBRATED)


def _fates(checkpoint: Checkpoint, decisions: Mapping[str, Decision]) -> _Fates:
    return [(tensor, decisions[tensor.info.name]) for tensor in checkpoint.tensors]


def describe_compression(
    plan: Plan,
    recipe: Recipe,
    learned: Learned,
    *,
    model: str,
    revision: str | None,
    writer: str,
    error: MeasuredError | None,
    factors: Factors = NO_FACTORS,
    calibration: Mapping[str, Any] = MappingProxyType({}),
    source_quantization: Mapping[str, Any] = MappingProxyType({}),
) -> TqConfig:
    """The tq_config.json of a plan that was carried out."""
    layouts = {task.name: task.layout for task in plan.tasks if task.layout}
    main, other, patterns = _recorded_widths(layouts, recipe)
    shapes = {name: item.shape for name, item in layouts.items()}
    padded = {name: item.cols for name, item in layouts.items() if item.is_padded}
    return TqConfig(
        bits=main,
        group_size=recipe.group_size,
        compressed_layers=len(layouts),
        original_model=model,
        original_in_dims=padded,
        sensitive_bits=other,
        sensitive_patterns=patterns,
        writer=writer,
        source_revision=revision,
        source_dtype=main_dtype(task.sources[0].nominal for task in plan.tasks),
        source_bytes=plan.bytes_in,
        shapes={name: shape for name, shape in shapes.items() if name in padded or len(shape) != 2},
        kept_source_dtype=learned.exact,
        float32_norms={name: why for name, why in learned.float32_norms.items() if name in layouts},
        recipe=recipe_record(recipe),
        measured_error=error,
        factors=factors,
        calibration=_recorded_calibration(plan, calibration),
        source_quantization=source_quantization,
        code="trellis" if any(item.code == "trellis" for item in layouts.values()) else "scalar",
    )


def _recorded_calibration(plan: Plan, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts, and the compressed tensors that go without; nothing where all do."""
    coded = [task for task in plan.tasks if task.layout]
    without = [task.name for task in coded if task.scale != CALIBRATED]
    return {**facts, "without": without} if facts and len(without) < len(coded) else {}


def _recorded_widths(
    layouts: Mapping[str, GroupLayout], recipe: Recipe
) -> tuple[int, int | None, tuple[str, ...]]:
    """The usual width, and a second one with parts of names, where these tell its tensors apart."""
    widths = {name: layout.bits for name, layout in layouts.items()}
    as_asked = all(recipe.bits_for(name) == bits for name, bits in widths.items())
    if not layouts or not recipe.widths and as_asked:
        return recipe.bits, recipe.sensitive_bits, recipe.sensitive_patterns
    weights: Counter[int] = Counter()
    for layout in layouts.values():
        weights[layout.bits] += prod(layout.shape)
    main = max(weights, key=lambda bits: (weights[bits], -bits))
    if len(weights) == 2:
        (other,) = weights.keys() - {main}
        special = [name for name, bits in widths.items() if bits == other]
        patterns = substrings(special, widths.keys() - set(special))
        if patterns:
            return main, other, patterns
    return main, None, ()


def _check_globs(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """A glob that matches nothing is a slip of the pen, and the run would not be what was meant."""
    names = [tensor.info.name for tensor in checkpoint.tensors]
    for option, globs in (("--keep", recipe.keep), ("--only", recipe.only)):
        for glob in globs:
            if not fnmatch.filter(names, glob):
                raise UsageError(
                    f"{option} {glob!r} matches no tensor",
                    found=f"names such as {names[0]!r}" if names else "no tensors",
                    fix="see the names with `tq3 inspect SOURCE --tensors`",
                )


def _choose_widths(fates: _Fates, recipe: Recipe, main: str | None) -> Chosen:
    """The width of every tensor that may be compressed; None for one that the recipe leaves."""
    tensors = {tensor.info.name: tensor for tensor, decision in fates if decision.compress}
    if recipe.widths is None:
        return {name: recipe.bits_for(name) for name in tensors}
    yes = Decision(True, "")
    sizes = {tensor.info.name: tensor.info.n_elements for tensor, _ in fates}

    @cache
    def stored_bytes(dtype: str, shape: tuple[int, ...], bits: Width) -> int:
        one = Located(TensorInfo("", dtype, shape), "", 0)
        return _task(one, yes, bits, recipe, main).bytes_out

    infos = [tensor.nominal for tensor in tensors.values()]
    allocation = Allocation(infos, sizes, recipe, stored_bytes)
    if recipe.widths.target_bytes is None:
        return allocation.best()

    def plan_with(chosen: Chosen) -> Plan:
        tasks = (_task(t, decision, chosen.get(t.info.name), recipe, main) for t, decision in fates)
        return arrange(tasks, recipe.max_shard_bytes)

    advice = advice_on_target([tensor.nominal for tensor, _ in fates], recipe)
    return fit(allocation, recipe.widths.target_bytes, plan_with, advice)


def _task(
    tensor: Located,
    decision: Decision,
    bits: Width,
    recipe: Recipe,
    source_dtype: str | None,
    learned: Learned = NOTHING_LEARNED,
) -> Task:
    name = tensor.info.name
    if exact_because := learned.exact.get(name):
        return replace(copy_task(tensor.of_host, exact_because), must_be_finite=False)
    if decision.compress and bits is not None:
        is_half = recipe.norms == "float16" and name not in learned.float32_norms
        norm_dtype = "F16" if is_half else "F32"
        layout = GroupLayout(
            tensor.info.shape,
            bits,
            recipe.group_size,
            norm_dtype,
            tensor.transposed,
            recipe.code_for(bits),
        )
        return _encode_task(tensor, layout, recipe, decision.reason)
    reason = decision.reason
    if decision.compress:
        reason = why_exact(name, recipe) or reason
    kept = tensor.of_host
    if recipe.keep_dtype == "source":
        return copy_task(kept, reason)
    return cast_task(kept, dtype_where_kept(kept.nominal, source_dtype), reason)


def _encode_task(tensor: Located, layout: GroupLayout, recipe: Recipe, reason: str) -> Task:
    info = tensor.info
    return Task(
        name=info.name,
        action=Action.ENCODE,
        reason=reason,
        sources=(tensor,),
        targets=layout.tensors(info.name),
        units=layout.units,
        layout=layout,
        scale=recipe.scale,
    )
