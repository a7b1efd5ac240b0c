"""Open a checkpoint where it lies: in a folder of this machine, in the Hub cache, or on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tq3.errors import BadInput, NetworkError, UsageError
from tq3.format.files import Source
from tq3.format.options import BesideKeywords, StrPath
from tq3.format.repositories import is_repository_name
from tq3.hub.options import HubOptions
from tq3.storage.local import LocalFiles

if TYPE_CHECKING:
    from tq3.hub.files import HubFiles

FOLDER = HubOptions()


def is_repository_id(source: StrPath) -> bool:
    """Whether this text (no path object) is NAME or ORGANISATION/NAME, and nothing is there."""
    return isinstance(source, str) and is_repository_name(source) and not os.path.lexists(source)


@contextmanager
def open_source(source: StrPath, options: HubOptions = FOLDER) -> Iterator[Source]:
    """The files of a folder, or of a repository on the Hub.

    A name is a repository's where it can be one and nothing of that name is here; one that begins
    with the name of a folder that is here is so only if a revision or a download is asked for.

    Raises BadInput for what is neither, NetworkError for what the Hub refuses, UsageError for
    options of the Hub with a folder.
    """
    if is_repository_id(source):
        if not _asks_the_hub(options):
            _refuse_path(str(source))
        with _open_repository(str(source), options) as files:
            yield files
        return
    if _asks_the_hub(options):
        raise UsageError(
            "--revision and --download are for repositories of the Hub",
            file=source,
            fix="leave them out for a folder; a repository is NAME or ORGANISATION/NAME",
        )
    with LocalFiles(source) as files:
        yield files


def options_of_both(
    path: StrPath, source: StrPath | None, options: BesideKeywords
) -> tuple[HubOptions, HubOptions]:
    """How `path` is read and how `source`, of which a download is for those on the Hub.

    Where neither is there, it is for `path`, so that `open_source` refuses it.
    """
    fetched = FOLDER
    if options.get("download"):
        fetched = HubOptions(download=True, show_download=options.get("show_download", False))
    elsewhere = source is not None and is_repository_id(source)
    here = is_repository_id(path) or not elsewhere
    return (
        replace(fetched if here else FOLDER, revision=options.get("revision")),
        replace(fetched if elsewhere else FOLDER, revision=options.get("source_revision")),
    )


def _asks_the_hub(options: HubOptions) -> bool:
    """Whether a repository is meant, and not a folder whose name is mistyped."""
    return options.revision is not None or options.download


def _refuse_path(source: str) -> None:
    """Raise BadInput for a name in a folder that is here: the Hub need not be asked for it."""
    folder, name = os.path.split(source)
    if os.path.isdir(folder):
        raise BadInput(
            "no such folder",
            file=source,
            found=f"{folder}, and no {name} in it",
            fix="correct the path; for the repository of that name on the Hub add --revision main",
        )


def _asked_once(options: HubOptions) -> HubOptions:
    # Without an organisation a name is more often a mistyped folder than one of the first models.
    return replace(options, opening_patience_seconds=0.0)


def _open_repository(name: str, options: HubOptions) -> LocalFiles | HubFiles:
    # huggingface_hub takes longer to start than tq3, and folders do without.
    from tq3.hub import cache  # noqa: PLC0415
    from tq3.hub.files import HubFiles  # noqa: PLC0415

    try:
        if cache.is_offline():
            return LocalFiles(cache.cached_snapshot(name, options.revision))
        return HubFiles(name, options if "/" in name else _asked_once(options))
    except NetworkError as error:
        if _asks_the_hub(options) or not (error.repeatable or cache.is_offline()):
            raise
        raise NetworkError(
            f"no folder of that name is here, nor can a repository be read: {error.message}",
            file=name,
            fix=f"correct the path, or {error.fix}",
            repeatable=error.repeatable,
        ) from error
