"""How much of a model's matrices a plan compresses, and what speaks for so little.

Counted are matrices that might be weights of layers: not tables and heads, which stay by promise,
and nothing that the user asked to keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tq3.errors import BadInput
from tq3.format.header import FLOATS
from tq3.format.recipe import Recipe
from tq3.plan.plan import Plan, Task
from tq3.plan.policy import decide, why_kept
from tq3.units import counted, size

_LEAST = 0.5
_REASONS = 3


def refuse_nothing(plan: Plan, recipe: Recipe, label: str) -> None:
    """Raise BadInput where no tensor is compressed, and the user has not chosen any by name.

    label: of the source
    """
    if recipe.keep or recipe.only or any(task.layout for task in plan.tasks):
        return
    raise BadInput(
        "nothing to compress",
        file=label,
        found=_reasons(plan.tasks),
        expected="matrices of a model's layers, or fused experts",
        fix="`tq3 inspect SOURCE --tensors` says of each tensor why it stays as it is",
    )


def little_compressed(plan: Plan, recipe: Recipe) -> str | None:
    """That less than half of the matrices' bytes is compressed, and why; None where it is more."""
    compressed = sum(task.bytes_in for task in plan.tasks if task.layout)
    if not compressed:
        return f"nothing is compressed: {_reasons(plan.tasks)}"
    left = [task for task in plan.tasks if not task.layout and _is_left(task, recipe)]
    total = compressed + sum(task.bytes_in for task in left)
    if recipe.only or compressed >= _LEAST * total:
        return None
    return f"only {compressed / total:.0%} of the matrices' bytes are compressed: {_reasons(left)}"


def _is_left(task: Task, recipe: Recipe) -> bool:
    """Whether this is a matrix that neither a promise nor the user keeps."""
    info = task.sources[0].info
    is_matrix = len(info.shape) in (2, 3) and info.dtype in FLOATS
    return is_matrix and not why_kept(info.name) and not _would_be_compressed(task, recipe)


def _would_be_compressed(task: Task, recipe: Recipe) -> bool:
    """Without anything that the user asked for by name or role."""
    plain = replace(recipe, keep=(), only=(), widths=None)
    return decide(task.sources[0].info, plain).compress


def _reasons(tasks: Iterable[Task]) -> str:
    """The reasons that keep most bytes, each with its largest tensor."""
    together: dict[str, list[Task]] = {}
    for task in tasks:
        together.setdefault(task.reason, []).append(task)
    sums = {reason: sum(task.bytes_in for task in some) for reason, some in together.items()}
    largest = sorted(sums, key=lambda reason: -sums[reason])[:_REASONS]
    return "; ".join(
        f"{counted(len(together[reason]), 'tensor')} of {size(sums[reason])} "
        f"such as {max(together[reason], key=lambda task: task.bytes_in).name!r} ({reason})"
        for reason in largest
    )
