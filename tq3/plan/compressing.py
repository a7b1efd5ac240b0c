"""The plan of a compression: each tensor becomes packed codes and norms, or stays."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

from tq3.errors import UsageError
from tq3.format.config import MeasuredError, TqConfig, recipe_record
from tq3.format.layout import GroupLayout
from tq3.format.recipe import Recipe
from tq3.plan.learned import NOTHING_LEARNED, Learned
from tq3.plan.plan import Action, Plan, Task, arrange, cast_task, copy_task
from tq3.plan.policy import decide
from tq3.plan.sources import Checkpoint, Located, refuse_quantised

# tq_config.json names source dtypes as config.json does.
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def plan_compression(
    checkpoint: Checkpoint, recipe: Recipe, learned: Learned = NOTHING_LEARNED
) -> Plan:
    """Decide every tensor's fate. Raises BadInput or UsageError."""
    refuse_quantised(checkpoint)
    _check_globs(checkpoint, recipe)
    tasks = (_task(tensor, recipe, learned) for tensor in checkpoint.tensors)
    return arrange(tasks, recipe.max_shard_bytes)


def describe_compression(
    plan: Plan,
    recipe: Recipe,
    learned: Learned,
    *,
    model: str,
    revision: str | None,
    writer: str,
    error: MeasuredError | None,
) -> TqConfig:
    """The tq_config.json of a plan that was carried out."""
    layouts = {task.name: task.layout for task in plan.tasks if task.layout}
    shapes = {name: item.shape for name, item in layouts.items()}
    padded = {name: item.cols for name, item in layouts.items() if item.is_padded}
    return TqConfig(
        bits=recipe.bits,
        group_size=recipe.group_size,
        compressed_layers=len(layouts),
        original_model=model,
        original_in_dims=padded,
        sensitive_bits=recipe.sensitive_bits,
        sensitive_patterns=recipe.sensitive_patterns,
        writer=writer,
        source_revision=revision,
        source_dtype=_main_dtype(plan),
        source_bytes=plan.bytes_in,
        shapes={name: shape for name, shape in shapes.items() if name in padded or len(shape) != 2},
        kept_source_dtype=learned.exact,
        float32_norms=learned.float32_norms,
        recipe=recipe_record(recipe),
        measured_error=error,
    )


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


def _task(tensor: Located, recipe: Recipe, learned: Learned) -> Task:
    name = tensor.info.name
    if exact_because := learned.exact.get(name):
        return replace(copy_task(tensor, exact_because), must_be_finite=False)
    decision = decide(tensor.info, recipe)
    if decision.compress:
        is_half = recipe.norms == "float16" and name not in learned.float32_norms
        return _encode_task(tensor, recipe, decision.reason, "F16" if is_half else "F32")
    if recipe.keep_dtype == "float16":
        return cast_task(tensor, "F16", decision.reason)
    return copy_task(tensor, decision.reason)


def _encode_task(tensor: Located, recipe: Recipe, reason: str, norm_dtype: str) -> Task:
    info = tensor.info
    layout = GroupLayout(info.shape, recipe.bits_for(info.name), recipe.group_size, norm_dtype)
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


def _main_dtype(plan: Plan) -> str | None:
    """The dtype that holds most of the source's bytes."""
    totals: dict[str, int] = {}
    for task in plan.tasks:
        dtype = task.sources[0].info.dtype
        totals[dtype] = totals.get(dtype, 0) + task.bytes_in
    largest = max(totals, key=lambda dtype: totals[dtype], default=None)
    return _DTYPE_NAMES.get(largest, largest) if largest else None
