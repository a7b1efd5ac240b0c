"""How much of a model's matrices a plan compresses, and what speaks for so little.

Counted are matrices that might be weights of layers: not tables and heads, which stay by promise,
and nothing that the user asked to keep. Nobody asked for what is kept for its values' sake, or for
that of others that hosts join it with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tq3.errors import BadInput
from tq3.format.header import FLOATS, TensorInfo
from tq3.format.recipe import Recipe
from tq3.plan.learned import NOTHING_LEARNED, Learned
from tq3.plan.plan import Plan, Task
from tq3.plan.policy import decide, may_compress, why_kept
from tq3.units import counted, size

_LEAST = 0.5
_REASONS = 3


def refuse_nothing(plan: Plan, recipe: Recipe, label: str) -> None:
    """Raise BadInput where no tensor is compressed, and the user has not asked to keep any.

    label: of the source
    """
    if (recipe.keep and not recipe.only) or any(task.layout for task in plan.tasks):
        return
    raise BadInput(
        "nothing to compress",
        file=label,
        found=_reasons(plan.tasks),
        expected="matrices of a model's layers, or fused experts",
        fix="`tq3 inspect SOURCE --tensors` says of each tensor why it stays as it is",
    )


def little_compressed(plan: Plan, recipe: Recipe, learned: Learned = NOTHING_LEARNED) -> str | None:
    """A sentence if less than half of the matrices' bytes is compressed, and why; else None.

    learned: what the values taught, with which the plan was made
    """
    compressed = sum(task.bytes_in for task in plan.tasks if task.layout)
    if not compressed:
        return f"nothing is compressed: {_reasons(plan.tasks)}"
    left = list(_left(plan, recipe, learned))
    total = compressed + sum(task.bytes_in for task in left)
    if recipe.only or compressed >= _LEAST * total:
        return None
    return f"only {compressed / total:.0%} of the matrices' bytes are compressed: {_reasons(left)}"


def _left(plan: Plan, recipe: Recipe, learned: Learned) -> Iterator[Task]:
    """The matrices that neither a promise nor the user keeps."""
    plain = replace(recipe, keep=(), only=(), widths=None)
    for task in plan.tasks:
        info = task.sources[0].nominal
        is_matrix = len(info.shape) in (2, 3) and info.dtype in FLOATS
        if task.layout or not is_matrix or why_kept(info.name):
            continue
        is_kept_for_values = info.name in learned.exact and _would_compress(info, recipe)
        if info.name in plan.joined or is_kept_for_values or not decide(info, plain).compress:
            yield task


def _would_compress(info: TensorInfo, recipe: Recipe) -> bool:
    """Whether the user lets it be compressed, whatever its values are."""
    return may_compress(info, recipe) if recipe.widths else decide(info, recipe).compress


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
