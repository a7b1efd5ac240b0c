"""A model repository on the Hub as `tq3 push` needs it: looked at, created, uploaded to.

Files go up as they are preuploaded by huggingface_hub, and one commit then names them all: nothing
half-done is ever visible, and what is on the Hub's disks already is not sent again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_session,
    get_token,
    hf_raise_for_status,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from tq3.errors import BadInput, NetworkError
from tq3.hub.attempts import ask
from tq3.hub.bars import bars
from tq3.hub.failures import LATER, LOGIN, HTTPError, asking, failure
from tq3.hub.options import HubOptions
from tq3.hub.repository import RemoteFile

# What the Hub keeps in git itself has a git blob's identifier, and is smaller than this.
_LARGEST_IN_GIT = 10 * 2**20
_PULL_REQUEST = "refs/pr/"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish.

    content: where it lies, or its bytes
    git_id: its identifier as a git blob, None where it is too large for one
    """

    name: str
    content: Path | bytes
    n_bytes: int
    sha256: str
    git_id: str | None


@dataclass(frozen=True, slots=True)
class RemoteState:
    """A repository at one commit.

    has_branch: False where the revision that was asked for is still to be made, from this commit
    """

    commit: str
    private: bool
    has_branch: bool
    files: Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit of an upload; revision: by which its files can be listed."""

    revision: str
    url: str
    pull_request: str | None


class Hasher:
    """Both identifiers by which the Hub may know a file, from its parts in order."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % n_bytes) if n_bytes <= _LARGEST_IN_GIT else None

    def update(self, data: bytes) -> None:
        """Take in the next part."""
        self._sha256.update(data)
        if self._git:
            self._git.update(data)

    def file(self, name: str, content: Path | bytes) -> LocalFile:
        """The file whose parts these were."""
        git_id = self._git.hexdigest() if self._git else None
        return LocalFile(name, content, self._n_bytes, self._sha256.hexdigest(), git_id)


def is_same(local: LocalFile, remote: RemoteFile | None) -> bool:
    """Whether the Hub has these very bytes: by size, and by the identifier that it knows."""
    if remote is None or remote.size != local.n_bytes:
        return False
    return remote.etag == (local.sha256 if remote.large else local.git_id)


class Branch:
    """One branch of a model repository. Every method raises NetworkError, when patience ends.

    name: ORGANISATION/NAME, or NAME for one of the user's own
    revision: a branch, made when it is not there, or a pull request such as refs/pr/1
    """

    def __init__(self, name: str, revision: str | None, *, create_pr: bool) -> None:
        self._api = HfApi(endpoint=constants.ENDPOINT)
        self.name = name if "/" in name else f"{self._user(name)}/{name}"
        self.revision = revision or constants.DEFAULT_REVISION
        self._create_pr = create_pr

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        return ask(self.name, call, HubOptions(), Event())

    @property
    def url(self) -> str:
        """The branch's page on the Hub."""
        return f"{self._api.endpoint}/{self.name}"

    def check_login(self) -> None:
        """Ask the Hub whether it knows who pushes; what they may do is not known before."""
        self._user(self.name)

    def look(self) -> RemoteState | None:
        """The branch as it is now; None where there is no such repository, or none to be seen."""
        return self._ask(self._look)

    def _look(self) -> RemoteState | None:
        has_branch = True
        try:
            info = self._api.model_info(self.name, revision=self.revision)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        except RevisionNotFoundError:
            if self.revision.startswith(_PULL_REQUEST):
                raise
            has_branch, info = False, self._api.model_info(self.name)
        commit = str(info.sha)
        return RemoteState(commit, bool(info.private), has_branch, self.files(commit))

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """Every file of a revision."""
        entries = self._ask(
            lambda: list(self._api.list_repo_tree(self.name, recursive=True, revision=revision))
        )
        return {
            entry.path: RemoteFile(
                entry.path,
                entry.size,
                entry.lfs.sha256 if entry.lfs else entry.blob_id,
                large=entry.lfs is not None,
            )
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def read_text(self, file: str, revision: str) -> str:
        """A small text file of a revision."""
        with (
            tempfile.TemporaryDirectory() as folder,
            asking(f"{self.name}/{file}"),
            bars(shown=False),
        ):
            path = self._api.hf_hub_download(self.name, file, revision=revision, local_dir=folder)
            return Path(path).read_text("utf-8", "replace")

    def create(self, *, private: bool) -> None:
        """Make the repository; without `private` as visible as the organisation's new ones are."""
        self._ask(lambda: self._api.create_repo(self.name, private=private or None, exist_ok=True))

    def create_branch(self) -> None:
        """Make the branch of the revision, from the main one."""
        self._ask(lambda: self._api.create_branch(self.name, branch=self.revision, exist_ok=True))

    def check_card(self, card: str) -> None:
        """Raise BadInput for a card whose metadata the Hub would not take."""
        # Not ModelCard.validate, which up to version 1 asks huggingface.co whatever HF_ENDPOINT is.
        url = f"{self._api.endpoint}/api/validate-yaml"

        def check() -> Any:
            answer = get_session().post(url, json={"content": card, "repoType": "model"})
            if answer.status_code != HTTPStatus.BAD_REQUEST:
                hf_raise_for_status(answer)
            return answer

        answer = self._ask(check)
        if answer.status_code == HTTPStatus.BAD_REQUEST:
            raise BadInput(f"the Hub refuses its metadata: {answer.text}", file="README.md")

    def upload(self, files: Sequence[LocalFile], *, show_bars: bool) -> list[CommitOperationAdd]:
        """Send what the Hub's disks do not have yet; small files wait for the commit.

        show_bars: let huggingface_hub draw its own on the terminal
        """

        def send() -> list[CommitOperationAdd]:
            with _uploading(self.name), bars(shown=show_bars):
                additions = [CommitOperationAdd(file.name, file.content) for file in files]
                self._api.preupload_lfs_files(
                    self.name,
                    additions,
                    revision=self.revision,
                    create_pr=self._create_pr,
                    free_memory=False,
                )
            return additions

        return self._ask(send)

    def commit(self, additions: Sequence[CommitOperationAdd], message: str, parent: str) -> Commit:
        """Name all that was uploaded in one commit on top of `parent`."""
        return self._ask(lambda: self._commit(additions, message, parent))

    def _commit(self, additions: Sequence[CommitOperationAdd], message: str, parent: str) -> Commit:
        with _uploading(self.name), bars(shown=False):
            try:
                info = self._api.create_commit(
                    self.name,
                    additions,
                    commit_message=message,
                    revision=self.revision,
                    create_pr=self._create_pr,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
                    raise
                raise NetworkError(
                    "somebody else changed it meanwhile, and nothing was committed",
                    file=self.name,
                    fix="look at what changed, and push again: what was uploaded is not sent twice",
                ) from None
        revision = info.pr_revision or info.oid
        return Commit(revision, info.commit_url, info.pr_url)

    def _user(self, name: str) -> str:
        if get_token() is None:
            raise NetworkError("nobody is logged in", file=name, fix=LOGIN)
        with asking(name):
            return str(self._api.whoami()["name"])


@contextmanager
def _uploading(what: str) -> Iterator[None]:
    """Like `asking`, and for the plain errors in which LFS and Xet uploads wrap what went wrong."""
    try:
        with asking(what):
            yield
    except RuntimeError as error:
        if isinstance(error.__cause__, HTTPError):
            raise failure(error.__cause__, what) from error
        raise _not_uploaded(error, what) from error
    except OSError as error:
        if error.filename is not None:  # a file of ours
            raise
        raise _not_uploaded(error, what) from error


def _not_uploaded(error: Exception, what: str) -> NetworkError:
    why = f"{error} {error.__cause__ or ''}".strip()
    return NetworkError(f"not uploaded: {why}", file=what, fix=LATER, repeatable=True)
