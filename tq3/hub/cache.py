"""The Hub cache of this machine: what it has already is not fetched again."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from threading import Event

import huggingface_hub
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError

from tq3.errors import StorageError
from tq3.format.weight_files import SUFFIX, indexed
from tq3.hub.attempts import ask
from tq3.hub.bars import bars
from tq3.hub.failures import asking
from tq3.hub.options import HubOptions
from tq3.hub.repository import RemoteFile, Repository
from tq3.storage.sidecars import choose_sidecars


def is_offline() -> bool:
    """Whether huggingface_hub may not ask the Hub (HF_HUB_OFFLINE)."""
    return constants.HF_HUB_OFFLINE


def needed(names: Iterable[str]) -> tuple[str, ...]:
    """The files of a repository that a run reads: the weights at its top, and what is copied."""
    names = tuple(names)
    top = [name for name in names if (indexed(name) or name).endswith(SUFFIX) and "/" not in name]
    return (*top, *choose_sidecars(names, top).copied)


def cached_snapshot(name: str, revision: str | None) -> Path:
    """The folder of a model in the cache, with all that is needed. Raises NetworkError."""
    with asking(name):
        try:
            found = snapshot_download(
                name, revision=revision, cache_dir=_cache_folder(), local_files_only=True
            )
        except LocalEntryNotFoundError as error:
            # huggingface_hub 2 knows what the repository has, and misses all of it.
            folder = getattr(error, "snapshot_path", None)
            if folder is None or not _has_needed(Path(folder), name):
                raise
            found = folder
    return Path(found)


def _has_needed(folder: Path, name: str) -> bool:
    listing = huggingface_hub.get_cached_repo_tree(
        name, revision=folder.name, cache_dir=constants.HF_HUB_CACHE
    )
    return all((folder / file).is_file() for file in needed(entry.path for entry in listing))


def cached_files(repository: Repository) -> dict[str, Path]:
    """Name -> path of the files of this commit that are in the cache, whole."""
    paths = ((file, _cached(repository, file)) for file in repository.files.values())
    return {file.name: path for file, path in paths if path and _is_whole(path, file)}


def folder_of(path: Path, name: str) -> Path:
    """The snapshot that holds the file `name` at `path`."""
    return path.parents[len(PurePosixPath(name).parts) - 1]


def download(repository: Repository, options: HubOptions, stop: Event) -> None:
    """Fetch what is needed into the cache with huggingface_hub's client. Raises NetworkError."""
    wanted = [glob.escape(name) for name in needed(repository.files)]
    cache_folder = _cache_folder()

    def fetch(revision: str | None) -> str:
        return snapshot_download(
            repository.name,
            revision=revision,
            allow_patterns=wanted,
            cache_dir=cache_folder,
            endpoint=constants.ENDPOINT,
        )

    with bars(shown=options.show_download):
        # By its name, so that the cache knows the branch when it is asked without the Hub.
        folder = ask(repository.label, lambda: fetch(options.revision), options, stop)
        if Path(folder).name != repository.commit:  # the branch moved
            ask(repository.label, lambda: fetch(repository.commit), options, stop)


def _cache_folder() -> Path:
    """The folder of huggingface_hub's cache. Raises StorageError for a user without a home.

    What is read by ranges needs none.
    """
    try:
        return Path(constants.HF_HUB_CACHE).expanduser()
    except RuntimeError:
        raise StorageError(
            "this user has no home folder, and so no Hub cache",
            fix="set HF_HOME to a folder that may be written",
            repeatable=False,
        ) from None


def _cached(repository: Repository, file: RemoteFile) -> Path | None:
    found = try_to_load_from_cache(
        repository.name, file.name, revision=repository.commit, cache_dir=constants.HF_HUB_CACHE
    )
    return Path(found) if isinstance(found, str) else None


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """A link in the cache leads to a file that is named by its content."""
    is_other = path.is_symlink() and Path(os.path.realpath(path)).name != file.etag
    return not is_other and path.is_file() and path.stat().st_size == file.size
