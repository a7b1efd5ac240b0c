"""Whether the unfinished run in a target is one that this run may go on with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tq3.errors import UsageError
from tq3.plan.identity import Identity
from tq3.storage.drafts import JOURNAL, WORK_FOLDER
from tq3.storage.journal import Journal

_TOLD = 3  # differences in one sentence


def check_continuation(folder: Path, identity: Identity) -> None:
    """Raise UsageError where it differs from this one, or is still running; change nothing."""
    path = folder / WORK_FOLDER / JOURNAL
    if not os.path.lexists(path):
        return
    with Journal(path) as journal:
        differences = identity.differences(journal.identity) if journal.identity else []
        if differences and can_go_on(journal):
            raise other_run(folder, differences)


def can_go_on(journal: Journal) -> bool:
    """Whether there is something to lose: work of a run whose input was not refused."""
    return journal.has_work and not journal.is_refused


def other_run(folder: Path, differences: Sequence[str]) -> UsageError:
    """The error of a run that could be continued but for these differences."""
    return UsageError(
        "an unfinished run is in the target, and something changed since",
        file=folder,
        found="; ".join(differences[:_TOLD]),
        fix="undo that and continue, or --overwrite or --no-resume to start anew",
    )
