"""Answers whose body is read straight into a buffer.

http.client takes a third of the processor time that huggingface_hub's client takes for a gigabyte,
and Python lets one thread at a time spend it. That client is asked where it may know better.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from http.client import HTTPConnection, HTTPSConnection
from importlib import import_module
from threading import Lock
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from huggingface_hub import get_session
from huggingface_hub.utils import _http

from tq3.hub.failures import HTTPError

Headers = Mapping[str, str]


class Answer(AbstractContextManager["Answer"], Protocol):
    """Status and headers, and a body that is still to come."""

    status: int
    headers: Headers
    socket: socket.socket

    def read_into(self, room: memoryview) -> int:
        """Put what comes next at the start of `room`; gives the number of bytes, 0 at the end."""


class Connections:
    """Asks for contents, for any number of threads, over connections that stay open."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._lock = Lock()
        self._idle: dict[str, list[HTTPConnection]] = defaultdict(list)
        self._under_way: set[socket.socket] = set()
        self._ended = False

    @contextmanager
    def get(self, url: str, headers: Headers) -> Iterator[Answer]:
        """The answer to a GET. Raises OSError, HTTPException, or an error of their client."""
        ours = None if _is_for_their_client(urlsplit(url)) else self._ask(url, headers)
        with (
            ours or _Theirs(url, headers, self._silence_seconds) as answer,
            self._interruptible(answer.socket),
        ):
            yield answer

    def end(self) -> None:
        """Wake up whoever waits for the next byte of an answer, and keep no connection."""
        with self._lock:
            self._ended = True
            for one in self._under_way:
                _shut(one)
            for connections in self._idle.values():
                while connections:
                    connections.pop().close()

    def _ask(self, url: str, headers: Headers) -> _Ours | None:
        """Our own way; None where the answer leads elsewhere, or does not tell its length."""
        parts = urlsplit(url)
        origin, target = f"{parts.scheme}://{parts.netloc}", parts._replace(scheme="", netloc="")
        while True:
            connection = self._take(origin)
            is_new = connection.sock is None
            try:
                if is_new:
                    connection.connect()
                with self._interruptible(connection.sock):
                    connection.request("GET", target.geturl() or "/", headers=dict(headers))
                    answer = _Ours(connection, lambda one: self._keep(origin, one))
            except BaseException as error:
                connection.close()
                if is_new or not isinstance(error, ConnectionError):
                    raise
                continue  # the server had closed it meanwhile
            if answer.is_plain:
                return answer
            connection.close()
            return None

    def _take(self, origin: str) -> HTTPConnection:
        with self._lock:
            if self._idle[origin]:
                return self._idle[origin].pop()
        scheme, _, place = origin.partition("://")
        if scheme == "http":
            return HTTPConnection(place, timeout=self._silence_seconds)
        return HTTPSConnection(place, timeout=self._silence_seconds, context=self._certificates)

    def _keep(self, origin: str, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._ended:
                self._idle[origin].append(connection)
                return
        connection.close()

    @contextmanager
    def _interruptible(self, one: socket.socket) -> Iterator[None]:
        with self._lock:
            self._under_way.add(one)
            if self._ended:
                _shut(one)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(one)

    @cached_property
    def _certificates(self) -> Any:
        """The ssl.SSLContext that their client makes, from the same settings."""
        # httpx or httpx2: see failures.py.
        return import_module(HTTPError.__module__.partition(".")[0]).create_ssl_context()


class _Ours:
    """An answer by http.client."""

    def __init__(self, connection: HTTPConnection, keep: Callable[[HTTPConnection], None]) -> None:
        self._connection = connection
        self._keep = keep
        self.socket = connection.sock
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers: Headers = self._response.headers  # type: ignore[assignment]  # of texts
        self._n_left = self._response.length or 0

    @property
    def is_plain(self) -> bool:
        """Whether this is no redirection, and tells its length."""
        return not 300 <= self.status < 400 and self._response.length is not None

    def __enter__(self) -> _Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        if self._n_left:  # of no use for another request
            self._connection.close()
        else:
            self._keep(self._connection)

    def read_into(self, room: memoryview) -> int:
        # HTTPResponse.readinto waits until the room is full, and a failure takes what came before.
        n_bytes = self._response.fp.readinto1(room[: self._n_left])
        self._n_left -= n_bytes
        return n_bytes


class _Theirs:
    """An answer by huggingface_hub's client."""

    def __init__(self, url: str, headers: Headers, silence_seconds: float) -> None:
        self._stream = get_session().stream(
            "GET", url, headers=dict(headers), timeout=silence_seconds
        )

    def __enter__(self) -> _Theirs:
        response = self._stream.__enter__()
        self.status: int = response.status_code
        self.headers: Headers = response.headers
        self.socket = response.extensions["network_stream"].get_extra_info("socket")
        self._pieces = response.iter_raw()
        self._piece = memoryview(b"")
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def read_into(self, room: memoryview) -> int:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        n_bytes = min(len(room), len(self._piece))
        room[:n_bytes] = self._piece[:n_bytes]
        self._piece = self._piece[n_bytes:]
        return n_bytes


def _is_for_their_client(parts: SplitResult) -> bool:
    """Whether there is a proxy, a password in the address, or a client that the program chose."""
    is_chosen = _http._GLOBAL_CLIENT_FACTORY is not _http.default_client_factory
    has_proxy = bool({"http", "https", "all"} & getproxies().keys())
    return has_proxy or is_chosen or "@" in parts.netloc


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        # Not the one of SSLSocket, which takes the TLS from under the thread that reads.
        socket.socket.shutdown(one, socket.SHUT_RDWR)
