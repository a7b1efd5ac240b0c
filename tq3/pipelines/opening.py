"""Where a checkpoint lies: in a folder of this machine, in the Hub cache, or on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tq3.errors import UsageError
from tq3.hub.options import HubOptions
from tq3.pipelines.events import StrPath
from tq3.plan.sources import Source
from tq3.storage.local import LocalFiles

if TYPE_CHECKING:
    from tq3.hub.files import HubFiles

_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_ID = re.compile(rf"{_WORD}(?:/{_WORD})?", re.ASCII)
FOLDER = HubOptions()


def is_repository_id(source: StrPath) -> bool:
    """Whether this text (no path object) is NAME or ORGANISATION/NAME, and nothing is there."""
    return isinstance(source, str) and bool(_ID.fullmatch(source)) and not os.path.lexists(source)


@contextmanager
def open_source(source: StrPath, options: HubOptions = FOLDER) -> Iterator[Source]:
    """The files of a folder, or of a repository on the Hub.

    Raises BadInput for what is neither, NetworkError for what the Hub refuses, UsageError for
    options of the Hub with a folder.
    """
    if is_repository_id(source):
        with _open_repository(str(source), options) as files:
            yield files
        return
    if options.revision is not None or options.download:
        raise UsageError(
            "--revision and --download are for repositories of the Hub",
            file=source,
            fix="leave them out for a folder; a repository is NAME or ORGANISATION/NAME",
        )
    with LocalFiles(source) as files:
        yield files


def _open_repository(name: str, options: HubOptions) -> LocalFiles | HubFiles:
    # huggingface_hub takes longer to start than tq3, and folders do without.
    from tq3.hub import cache  # noqa: PLC0415
    from tq3.hub.files import HubFiles  # noqa: PLC0415

    if cache.is_offline():
        return LocalFiles(cache.cached_snapshot(name, options.revision))
    return HubFiles(name, options)
