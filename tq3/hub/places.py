"""Where the bytes of a file lie for the moment: addresses that the Hub signs, and that expire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event, Lock
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from tq3.errors import NetworkError
from tq3.hub.attempts import ask
from tq3.hub.options import HubOptions
from tq3.hub.repository import RemoteFile, Repository


@dataclass(slots=True)
class SignedAddress:
    """An address, and what is sent along.

    etag: what the storage called the content first; it has its own names
    """

    url: str
    headers: Mapping[str, str]
    etag: str | None = None


class Places:
    """The address of each file, asked for when it is needed first, and again when it expired."""

    def __init__(self, repository: Repository, options: HubOptions, stop: Event) -> None:
        self._repository = repository
        self._options = options
        self._stop = stop
        self._known: dict[str, SignedAddress] = {}
        # For each file one thread asks, and the others wait for its answer.
        self._locks = {name: Lock() for name in repository.files}

    def find(self, file: RemoteFile) -> SignedAddress:
        """The address of the file's bytes. Raises NetworkError."""
        with self._locks[file.name]:
            if file.name not in self._known:
                self._known[file.name] = self._ask(file)
            return self._known[file.name]

    def forget(self, file: RemoteFile, place: SignedAddress) -> None:
        """This address does not work any more; another thread may have a new one already."""
        with self._locks[file.name]:
            if self._known.get(file.name) is place:
                del self._known[file.name]

    def _ask(self, file: RemoteFile) -> SignedAddress:
        repository, endpoint = self._repository, constants.ENDPOINT
        url = hf_hub_url(repository.name, file.name, revision=repository.commit, endpoint=endpoint)
        what = f"{repository.name}/{file.name}"
        timeout = self._options.stall_seconds
        found = ask(
            what,
            lambda: get_hf_file_metadata(url, timeout=timeout, endpoint=endpoint),
            self._options,
            self._stop,
        )
        is_listed = (found.commit_hash, found.etag, found.size)
        expected = (repository.commit, file.etag, file.size)
        if is_listed != expected:
            raise NetworkError(
                "not the file that the Hub listed",
                file=what,
                found="commit {}, etag {}, {} bytes".format(*is_listed),
                expected="commit {}, etag {}, {} bytes".format(*expected),
                fix="look at HF_ENDPOINT and the proxy",
                repeatable=False,
            )
        # The token is the Hub's: the storage behind a signed address must not see it.
        ours = urlsplit(found.location)[:2] == urlsplit(endpoint)[:2]
        return SignedAddress(found.location, build_hf_headers(token=None if ours else False))
