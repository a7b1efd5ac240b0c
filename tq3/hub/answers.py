"""Contents by huggingface_hub's client, read into buffers; and how nobody waits for them longer."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any
from weakref import WeakSet

from huggingface_hub import get_session

Headers = Mapping[str, str]
# What their client traces when a connection is new; its `return_value` is the connection.
_OPENED = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Answer:
    """Status and headers, and a body that is still to come."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers: Headers = response.headers
        self._pieces = response.iter_raw()
        self._piece = memoryview(b"")

    def read_into(self, room: memoryview) -> int:
        """Put what comes next at the start of `room`; gives the number of bytes, 0 at the end."""
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        n_bytes = min(len(room), len(self._piece))
        room[:n_bytes] = self._piece[:n_bytes]
        self._piece = self._piece[n_bytes:]
        return n_bytes


class Connections:
    """Asks for contents, for any number of threads."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._lock = Lock()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._ended = False

    @contextmanager
    def get(self, url: str, headers: Headers) -> Iterator[Answer]:
        """The answer to a GET. Raises errors of their client."""
        with get_session().stream(
            "GET",
            url,
            headers=dict(headers),
            timeout=self._silence_seconds,
            extensions={"trace": self._trace},
        ) as response:
            self._know(response.extensions["network_stream"])
            yield Answer(response)

    def end(self) -> None:
        """Wake up whoever waits for the next byte of an answer.

        Idle connections are shut too; their client sees that, and opens new ones.
        """
        with self._lock:
            self._ended = True
            for one in self._sockets:
                _shut(one)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event in _OPENED:
            self._know(info["return_value"])

    def _know(self, stream: Any) -> None:
        with self._lock:
            one = stream.get_extra_info("socket")
            self._sockets.add(one)
            if self._ended:
                _shut(one)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        # Not the one of SSLSocket, which takes the TLS from under the thread that reads.
        socket.socket.shutdown(one, socket.SHUT_RDWR)
