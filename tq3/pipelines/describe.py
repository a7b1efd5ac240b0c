"""What a checkpoint holds, or what compress would make of it: from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from math import prod

from tq3.dequantization.orientation import held_bytes
from tq3.dequantization.source import KEPT_BYTES
from tq3.equalization.choice import choose_scalings
from tq3.format.checkpoint import Checkpoint, read_checkpoint
from tq3.format.config import TqConfig, recipe_from_record
from tq3.format.files import CONFIG, Files, Source
from tq3.format.header import TensorInfo
from tq3.format.layout import NORMS, GroupLayout, stem_of_codes
from tq3.format.parts import Part
from tq3.format.precision import what_is_lost, what_may_be_lost
from tq3.format.recipe import Recipe
from tq3.moments.feedbacks import KEPT_FEEDBACK_BYTES
from tq3.moments.reading import Moments, of_others
from tq3.pipelines.description import Description, TensorLine
from tq3.pipelines.first_plan import first_plan, open_for, worth_knowing
from tq3.pipelines.part import share_in_words
from tq3.pipelines.roles import describe_choice
from tq3.pipelines.side_files import side_files
from tq3.plan.allocation import unreachable_target
from tq3.plan.classes import class_of
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.joined import decide_together
from tq3.plan.learned import NOTHING_LEARNED
from tq3.plan.plan import BLOCK_BYTES, Plan, Task
from tq3.plan.policy import Decision, why_exact
from tq3.plan.restoring import all_layouts, find_tq_config
from tq3.plan.routers import why_router_stays
from tq3.storage.selection import BY_POLICY, Selection
from tq3.storage.sidecars import RENAMED

# Resident memory of the program before it holds a block: interpreter, numpy, codec, terminal.
_BASE_MEMORY_BYTES = 64 * 2**20
# A tensor's entries in header, plan and index.
_TENSOR_MEMORY_BYTES = 3000


def describe(files: Source, recipe: Recipe, workers: int) -> Description:
    """A TQ3 checkpoint as it is; any other one as `recipe` would compress it. Raises BadInput."""
    checkpoint = read_checkpoint(files)
    config = find_tq_config(files, checkpoint.config)
    if config:
        return _describe_tq3(files, checkpoint, config)
    files, checkpoint = open_for(recipe, files)
    plan = plan_compression(checkpoint, recipe)
    return _describe_plan(files, checkpoint, plan, recipe, workers)


def describe_plan(
    files: Source,
    recipe: Recipe,
    workers: int,
    selection: Selection = BY_POLICY,
    *,
    verbatim_config: bool = False,
    moments: Moments | None = None,
    part: Part | None = None,
) -> Description:
    """What compress would write, and in a notice what `part` would of it.

    Raises BadInput or UsageError, as compress does.
    """
    files, checkpoint = open_for(recipe, files)
    plan = first_plan(files, checkpoint, recipe, moments)
    written = () if verbatim_config else (CONFIG,)
    found = _describe_plan(files, checkpoint, plan, recipe, workers, selection, written)
    shared = share_in_words(plan, part) if part else ()
    found = replace(found, notices=(*found.notices, *shared))
    if moments is None:
        return found
    notices = (*found.notices, *of_others(moments, checkpoint, plan))
    memory = (found.peak_memory_bytes or 0) + KEPT_FEEDBACK_BYTES
    return replace(found, calibration=moments.record, notices=notices, peak_memory_bytes=memory)


def _describe_plan(
    files: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    recipe: Recipe,
    workers: int,
    selection: Selection = BY_POLICY,
    written: Collection[str] = (CONFIG,),
) -> Description:
    sidecars = side_files(files, checkpoint, plan, selection, written=written, renamed=RENAMED)
    equalized = choose_scalings(checkpoint, plan, sidecars.copied, recipe.equalize)
    config = describe_compression(
        plan, recipe, NOTHING_LEARNED, model=files.label, revision=None, writer="", error=None
    )
    lines = tuple(
        _line(
            task.name,
            task.sources[0].info.shape,
            layout=task.layout,
            dtype=task.targets[0].dtype,
            n_bytes=task.bytes_out,
            reason=task.reason,
            loses=_what_is_lost(task),
        )
        for task in plan.tasks
    )
    return Description(
        path=files.label,
        planned=True,
        bits=config.bits,
        group_size=recipe.group_size,
        scale=recipe.scale,
        code=config.code,
        equalized=equalized.scalings is not None,
        original_model=None,
        source_revision=None,
        source_dtype=None,
        source_bytes=plan.bytes_in,
        writer=None,
        measured_error=None,
        shards={
            name: shard.file_bytes
            for name, shard in zip(plan.shard_names, plan.shards, strict=True)
        },
        tensors=lines,
        choice=describe_choice(lines, recipe, config),
        peak_memory_bytes=_peak_memory(plan, workers),
        unreachable_target=unreachable_target(plan, recipe),
        side_files={name: files.size(name) for name in sidecars.copied},
        left_out=sidecars.left_out,
        notices=(
            *checkpoint.notices,
            *worth_knowing(files, plan, recipe),
            *([equalized.why_not] if equalized.why_not else ()),
        ),
    )


def _describe_tq3(files: Files, checkpoint: Checkpoint, config: TqConfig) -> Description:
    recorded = recipe_from_record(config.recipe) if config.recipe else None
    recipe = recorded or Recipe(group_size=config.group_size, scale="norm")
    lines = tuple(_stored_lines(checkpoint, config, recipe))
    return Description(
        path=files.label,
        planned=False,
        bits=config.bits,
        group_size=config.group_size,
        scale=recorded.scale if recorded else None,
        code=config.code,
        equalized=bool(config.factors),
        calibration=config.calibration,
        original_model=config.original_model,
        source_revision=config.source_revision,
        source_dtype=config.source_dtype,
        source_bytes=config.source_bytes,
        writer=config.writer,
        measured_error=config.measured_error,
        shards={file: files.size(file) for file in checkpoint.weight_files},
        tensors=lines,
        choice=describe_choice(lines, recipe, config),
        notices=checkpoint.notices,
    )


def _stored_lines(checkpoint: Checkpoint, config: TqConfig, recipe: Recipe) -> Iterator[TensorLine]:
    layouts = all_layouts(checkpoint, config)
    sources = [TensorInfo(name, "F16", layout.shape) for name, layout in layouts.items()]
    sources += (tensor.info for tensor in checkpoint.tensors)
    decisions = decide_together(sources, recipe, config.source_dtype, config.kept_source_dtype)
    for info in (tensor.info for tensor in checkpoint.tensors):
        stem, _ = stem_of_codes(info.name) or (info.name, "")
        if stem != info.name:
            layout, wide = layouts[stem], config.float32_norms.get(stem)
            n_bytes = sum(part.n_bytes for part in layout.tensors(stem))
            yield _line(
                stem,
                layout.shape,
                layout=layout,
                dtype=info.dtype,
                n_bytes=n_bytes,
                reason=f"compressed, {wide}" if wide else "compressed",
            )
        elif info.name.removesuffix(NORMS) not in layouts:
            recorded = config.kept_source_dtype.get(info.name)
            yield _line(
                info.name,
                info.shape,
                layout=None,
                dtype=info.dtype,
                n_bytes=info.n_bytes,
                reason=recorded or _why_kept(info.name, decisions[info.name], recipe, config),
                loses=what_may_be_lost(info.dtype),
            )


def _what_is_lost(task: Task) -> str | None:
    """The precision that a kept tensor loses; None for a compressed one."""
    if task.layout:
        return None
    return what_is_lost(task.sources[0].info.dtype, task.targets[0].dtype)


def _why_kept(name: str, decision: Decision, recipe: Recipe, config: TqConfig) -> str:
    """The reason by the rules that apply to name, shape and type: the writer recorded none."""
    if not decision.compress:
        return decision.reason
    is_quantised = bool(config.source_quantization)
    stays = why_router_stays(name, recipe, is_quantised=is_quantised)
    return stays or why_exact(name, recipe) or "kept by its writer"


def _line(
    name: str,
    shape: tuple[int, ...],
    *,
    layout: GroupLayout | None,
    dtype: str,
    n_bytes: int,
    reason: str,
    loses: str | None = None,
) -> TensorLine:
    return TensorLine(
        name=name,
        label=class_of(name),
        shape=shape,
        bits=layout.bits if layout else None,
        dtype=dtype,
        n_weights=prod(shape),
        n_bytes=n_bytes,
        reason=reason,
        norm_dtype=layout.norm_dtype if layout else None,
        loses=loses,
        transposed=layout is not None and layout.transposed,
    )


def _peak_memory(plan: Plan, workers: int) -> int:
    """Each worker holds one block: of the usual size, or of one padded row that is larger."""
    units = (task.bytes_held // task.units for task in plan.tasks if task.units)
    blocks = workers * max(BLOCK_BYTES, *units, 0)
    is_quantised = any(source.pieces for task in plan.tasks for source in task.sources)
    kept = KEPT_BYTES if is_quantised else 0
    kept += held_bytes(source for task in plan.tasks for source in task.sources)
    return _BASE_MEMORY_BYTES + _TENSOR_MEMORY_BYTES * len(plan.tasks) + blocks + kept
