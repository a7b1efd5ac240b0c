"""The plan of a compression before any value is known: the one that a dry run shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tq3.dequantization.orientation import by_outputs, with_host_views
from tq3.dequantization.source import open_original
from tq3.errors import UsageError
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import Files, Source
from tq3.format.recipe import CALIBRATED, Recipe
from tq3.moments.reading import Moments
from tq3.plan import joined
from tq3.plan.compressing import plan_compression
from tq3.plan.coverage import little_compressed, refuse_nothing
from tq3.plan.plan import Plan
from tq3.plan.readers import missing_config
from tq3.plan.stacks import with_inputs_as_rows

# What is said of stacks that no host serves packed.
AS_STORED = (
    "fused experts are stored with inputs as rows, which are cut into groups as they are: hosts "
    "hold these experts decoded; --expert-groups inputs has them packed, for tq3's readers alone"
)


def open_for(recipe: Recipe, files: Source) -> tuple[Source, Checkpoint]:
    """The checkpoint as this recipe codes it. Raises BadInput.

    Stacks whose rows are inputs are turned where groups of inputs are asked for.
    """
    files, checkpoint = open_original(files)
    names = set(with_inputs_as_rows(checkpoint))
    if recipe.expert_groups == "inputs":
        files, checkpoint = by_outputs(files, checkpoint, names)
    elif names:
        checkpoint = replace(checkpoint, notices=(*checkpoint.notices, AS_STORED))
    return with_host_views(files, checkpoint), checkpoint


def first_plan(
    files: Files, checkpoint: Checkpoint, recipe: Recipe, moments: Moments | None = None
) -> Plan:
    """The plan that compress begins with. Raises BadInput where there is nothing to compress, and
    for moments that don't fit. Raises UsageError where moments could choose no code.
    """
    plan = plan_compression(checkpoint, recipe, calibrated=moments.readers if moments else ())
    for task in plan.tasks:
        if moments and task.scale == CALIBRATED:
            moments.check(task.sources[0], recipe.group_size)
    refuse_nothing(plan, recipe, files.label)
    if moments:
        refuse_uncalibrated(plan)
    return plan


def refuse_uncalibrated(plan: Plan) -> None:
    """Raise UsageError where all codes are trellises: moments choose none of theirs."""
    codes = {task.layout.code for task in plan.tasks if task.layout}
    if codes == {"trellis"}:
        raise UsageError(
            "--calibrate chooses scalar codes, and none is left to be chosen",
            found="--code trellis for all that is compressed",
            fix="leave --calibrate out, or take --code scalar",
        )


def worth_knowing(files: Files, plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Sentences that the user should know of such a plan beside its figures."""
    yield from joined.in_words(plan)
    if little := little_compressed(plan, recipe):
        yield little
    yield from missing_config(files)
