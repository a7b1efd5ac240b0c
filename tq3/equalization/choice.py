"""Whether a run equalizes columns: as it is asked to, else wherever that is possible."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from tq3.equalization.scalings import Scalings, plan_scalings
from tq3.errors import BadInput, UsageError
from tq3.format.checkpoint import Checkpoint
from tq3.plan.plan import Plan

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """What scales the tensors of a source; None where their values stay what they are.

    links: names of those that have factors, namely those that something compressed takes in
    why_not: a sentence for the user, where nobody asked that values stay
    """

    scalings: Scalings | None = None
    links: frozenset[str] = frozenset()
    why_not: str | None = None


def choose_scalings(
    checkpoint: Checkpoint, plan: Plan, copied: Collection[str], asked: bool | None
) -> Choice:
    """Scalings for the source of a plan.

    copied: the files that travel along
    asked: True or False for what must be, None for wherever it is possible

    Decided from headers. Raises UsageError or BadInput where what is asked for is impossible.
    """
    if asked is False:
        return Choice()
    try:
        scalings = plan_scalings(checkpoint)
        _refuse_adapters(copied)
        return Choice(scalings, _links(scalings, plan))
    except (UsageError, BadInput) as error:
        if asked:
            before = "columns can't be equalized"
            fix = "leave --equalize out"
            raise type(error).retold(error, before, file=error.file, fix=fix) from None
        return Choice(why_not=f"columns are not equalized: {error.reason}")


def _refuse_adapters(copied: Collection[str]) -> None:
    """Raise UsageError for an adapter that travels: it was trained beside the source's weights."""
    for name in copied:
        if PurePosixPath(name).name == _ADAPTER:
            raise UsageError("an adapter of the source's own weights is copied along", file=name)


def _links(scalings: Scalings, plan: Plan) -> frozenset[str]:
    """What has factors. What is kept stays as it is, where nothing compressed would gain by them.

    Raises UsageError where nothing has.
    """
    links = scalings.links_into({task.name for task in plan.tasks if task.layout})
    if not links:
        raise UsageError("no matrix is compressed that has columns to equalize")
    return links
