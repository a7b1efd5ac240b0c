"""What speaks against a folder as a target: the source, other files, a run that can't go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tq3.errors import UsageError
from tq3.plan.identity import Identity
from tq3.storage.drafts import PARTS, WORK_FOLDER, DraftFolder
from tq3.storage.failures import writing
from tq3.storage.journal import Journal

START_ANEW = "--overwrite or --no-resume to start anew"
_TOLD = 3  # differences in one sentence


def check_target(folder: Path, source: Path | None, *, overwrite: bool) -> None:
    """Raise UsageError for a folder in which no run could begin or go on."""
    if source:
        check_apart(folder, source)
    check_free(folder, allowed=overwrite or os.path.lexists(folder / WORK_FOLDER))


def check_apart(folder: Path, source: Path) -> None:
    """Raise UsageError if one lies inside the other."""
    here, there = (Path(os.path.realpath(path)) for path in (folder, source))
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(
            "source and target lie inside each other",
            file=folder,
            fix="give a target beside the source",
        )


def check_free(folder: Path, *, allowed: bool) -> None:
    """Raise UsageError if it is a file, or holds files that it is not `allowed` to replace."""
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise UsageError("the target is a file", file=folder, fix="give another path")
    with writing(folder):
        names = set(os.listdir(folder))
    if names - {WORK_FOLDER} and not allowed:
        raise UsageError(
            "the target folder is not empty",
            file=folder,
            fix="give another path, or --overwrite to replace what is there",
        )


def check_no_parts(folder: Path, *, allowed: bool) -> None:
    """Raise UsageError where parts of a divided run lie that may not go."""
    if not allowed and os.path.lexists(folder / WORK_FOLDER / PARTS):
        raise UsageError(
            "parts of a divided run are in the target",
            file=folder,
            fix="join them with `tq3 finish`, or --overwrite or --no-resume to start anew",
        )


def check_continuation(
    folder: Path, expected: Callable[[Mapping[str, Any]], Identity], *, resume: bool
) -> None:
    """Raise UsageError where an unfinished run is in the folder that can't be continued.

    expected: from the record of that run to the identity of the one that would continue it

    A look before any work is done: the run itself looks again.
    """
    path = folder / WORK_FOLDER / DraftFolder.JOURNAL
    if resume and path.is_file():
        with Journal(path) as journal:
            left = journal.identity
            check_changes(folder, journal, expected(left).differences(left) if left else [])


def check_changes(
    folder: Path, journal: Journal, differences: Sequence[str], anew: str = START_ANEW
) -> None:
    """Raise UsageError for what a run has in its journal that could be continued but for these."""
    if differences and journal.has_work and not journal.is_refused:
        raise UsageError(
            "an unfinished run is in the target, and something changed since",
            file=folder,
            found="; ".join(differences[:_TOLD]),
            fix=f"undo that and continue, or {anew}",
        )


def check_places(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError where a folder lies at a file's name, or no folder on the way to it."""
    for name in names:
        if os.path.isdir(folder / name) and not os.path.islink(folder / name):
            raise _in_the_way(folder / name, "a folder is in the way of a file")
        for above in PurePosixPath(name).parents[:-1]:
            if os.path.islink(folder / above):
                raise _in_the_way(folder / above, "a link, and nothing is written through links")
            if os.path.lexists(folder / above) and not os.path.isdir(folder / above):
                raise _in_the_way(folder / above, "a file is in the way of a folder")


def _in_the_way(path: Path, message: str) -> UsageError:
    return UsageError(message, file=path, fix="move it away, or give another target")
