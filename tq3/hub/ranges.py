"""Byte ranges over HTTP, however often the network fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock

from tq3.errors import NetworkError
from tq3.hub.answers import Answer, Connections
from tq3.hub.attempts import Attempts, GivenUp
from tq3.hub.failures import LATER, asking, check_passing, retry_after
from tq3.hub.options import HubOptions
from tq3.hub.places import Places, SignedAddress
from tq3.hub.repository import RemoteFile, Repository


class WrongAnswer(NetworkError):
    """Not the bytes that were asked for: an address that expired, a proxy that interferes."""


@dataclass(slots=True)
class _Wanted:
    """The missing rest of a range: `room` for it, from `offset` on in the file."""

    file: RemoteFile
    offset: int
    room: memoryview

    def advance(self, n_bytes: int) -> None:
        self.room = self.room[n_bytes:]
        self.offset += n_bytes


class RangeReader:
    """Fetches ranges of a commit's files, for any number of threads.

    n_received: bytes of content that came
    """

    def __init__(self, repository: Repository, options: HubOptions, stop: Event) -> None:
        self._repository = repository
        self._options = options
        self._stop = stop
        self._places = Places(repository, options, stop)
        self._connections = Connections(options.stall_seconds)
        self._lock = Lock()
        self.n_received = 0

    def read_into(self, file: RemoteFile, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`: after a failure from the byte where it stopped.

        Raises NetworkError when patience ends, or at once for what waiting can't mend.
        """
        wanted = _Wanted(file, offset, buffer)
        attempts = Attempts(f"{self._repository.name}/{file.name}", self._options, self._stop)
        while wanted.room:
            attempts.check()
            place = self._places.find(file)
            try:
                with asking(attempts.what), self._counted(wanted):
                    self._fetch(wanted, place, attempts)
            except GivenUp:
                raise
            except WrongAnswer as error:
                self._places.forget(file, place)
                attempts.refused(error)
            except NetworkError as error:
                if not error.repeatable:
                    raise
                attempts.pause(error, retry_after(error))

    def _fetch(self, wanted: _Wanted, place: SignedAddress, attempts: Attempts) -> None:
        """One request, as far as it goes."""
        first, last = wanted.offset, wanted.offset + len(wanted.room) - 1
        asked = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        with self._connections.get(place.url, {**place.headers, **asked}) as answer:
            check_passing(answer.status, answer.headers, attempts.what)
            _check_answer(answer, wanted, place)
            while wanted.room and (n_bytes := answer.read_into(wanted.room)):
                attempts.check()
                wanted.advance(n_bytes)
                attempts.advance()
        if wanted.room:
            raise NetworkError(
                "the answer ended early",
                file=attempts.what,
                found=f"{wanted.offset - first} bytes",
                expected=str(last + 1 - first),
                fix=LATER,
                repeatable=True,
            )

    def interrupt(self) -> None:
        """Have whoever waits for the next byte wait no longer; nothing more is read."""
        self._connections.end()

    @contextmanager
    def _counted(self, wanted: _Wanted) -> Iterator[None]:
        before = wanted.offset
        try:
            yield
        finally:
            with self._lock:
                self.n_received += wanted.offset - before


def _check_answer(answer: Answer, wanted: _Wanted, place: SignedAddress) -> None:
    """Raise unless these are just the bytes that were asked for, of the file that was meant."""
    status, headers = answer.status, answer.headers
    last, size = wanted.offset + len(wanted.room) - 1, wanted.file.size
    is_whole = status == 200 and (wanted.offset, last + 1) == (0, size)
    if status != 206 and not is_whole:
        raise _wrong("the storage does not give this range", wanted, f"status {status}", 206)
    expected = f"bytes {wanted.offset}-{last}/{size}"
    if not is_whole and headers.get("Content-Range") != expected:
        raise _wrong("another range", wanted, headers.get("Content-Range"), expected)
    length = headers.get("Content-Length")
    if length not in (None, str(len(wanted.room))):
        raise _wrong(
            "another number of bytes than were asked for", wanted, length, len(wanted.room)
        )
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _wrong("encoded", wanted, headers["Content-Encoding"], "identity")
    etag = str(headers.get("ETag", "")).removeprefix("W/")
    if place.etag is None:
        place.etag = etag
    if etag != place.etag:
        raise _wrong("the content has another etag than before", wanted, etag, place.etag)


def _wrong(message: str, wanted: _Wanted, found: object, expected: object) -> WrongAnswer:
    return WrongAnswer(
        message,
        file=wanted.file.name,
        found=found,
        expected=expected,
        fix=f"look at HF_ENDPOINT and the proxy, or {LATER}",
        repeatable=True,
    )
