"""A repository at one commit: which files it has, of what size and content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from threading import Event
from typing import Any

from huggingface_hub import HfApi, constants

from tq3.errors import NetworkError
from tq3.hub.attempts import ask
from tq3.hub.options import HubOptions


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit.

    etag: SHA-256 of the content where `large` (Git LFS and Xet), else Git's SHA-1 of it
    """

    name: str
    size: int
    etag: str
    large: bool

    def new_hash(self) -> Any:
        """The state of hashlib that `etag` is the digest of, once the content has gone into it."""
        if self.large:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Repository:
    """A model on the Hub. Its files never change: a commit is asked for, not a branch."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def label(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


def find_repository(name: str, options: HubOptions, stop: Event) -> Repository:
    """Pin the revision to the commit it names now, and list its files. Raises NetworkError."""
    api = HfApi(endpoint=constants.ENDPOINT)
    info = ask(
        name if options.revision is None else f"{name} at {options.revision}",
        # One answer, not pages of the tree: it is complete up to 50,000 files.
        lambda: api.model_info(
            name, revision=options.revision, files_metadata=True, timeout=options.stall_seconds
        ),
        replace(options, patience_seconds=options.opening_patience_seconds),
        stop,
    )
    files = {each.rfilename: _remote_file(name, each) for each in info.siblings or ()}
    if not info.sha:
        raise _unlike_the_hub(name, "no commit")
    return Repository(name, info.sha, files)


def _remote_file(name: str, sibling: Any) -> RemoteFile:
    path = PurePosixPath(sibling.rfilename)
    # These names become files of the output: none may lead out of it, on any system.
    elsewhere = PureWindowsPath(sibling.rfilename)
    leads_out = elsewhere.anchor or ".." in elsewhere.parts or not path.parts
    if leads_out or str(path) != sibling.rfilename or "\0" in sibling.rfilename:
        raise _unlike_the_hub(name, f"a file named {sibling.rfilename!r}")
    large = sibling.lfs is not None
    etag = sibling.lfs.sha256 if large else sibling.blob_id
    if not isinstance(sibling.size, int) or sibling.size < 0 or not etag:
        raise _unlike_the_hub(name, f"no size or hash of {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, sibling.size, etag, large)


def _unlike_the_hub(name: str, found: str) -> NetworkError:
    return NetworkError(
        "not answered as the Hub would",
        file=name,
        found=found,
        fix="look at HF_ENDPOINT and the proxy",
    )
