"""What goes wrong, as a test asked for it."""

from __future__ import annotations

import re
from threading import Lock
from typing import Any, NamedTuple


class Failure(NamedTuple):
    """An answer instead of the right one."""

    status: int
    code: str | None
    headers: dict[str, str]


class Faults:
    """Set by POST /_ctl with any of these keys; files are named by the end of their path.

    fail: {"METHOD regex of the path": [status, times, code or null, headers]}
    truncate: {file: n}, cut the connection after n bytes, once
    stall: {file: [n, seconds, times]}, silence after n bytes of a content
    lie: {file: [kind, times]}, kind one of size, range, whole, etag, short, long, encoded, corrupt
    address_uses: n, after which a signed address is refused as expired; null for no end
    gated: {repository: [tokens that may read it]}
    pace: bytes a second of each content; null for all there is
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.fail: dict[str, list[Any]] = {}
        self.truncate: dict[str, int] = {}
        self.stall: dict[str, list[Any]] = {}
        self.lie: dict[str, list[Any]] = {}
        self.gated: dict[str, list[str]] = {}
        self.address_uses: int | None = None
        self.pace: float | None = None
        self._uses: dict[str, int] = {}

    def set(self, wanted: dict[str, Any]) -> None:
        for key, value in wanted.items():
            if key.startswith("_") or not hasattr(self, key):
                raise KeyError(key)
            setattr(self, key, value)

    def failure(self, method: str, path: str) -> Failure | None:
        """The answer to give instead, counted down."""
        with self._lock:
            for key, value in self.fail.items():
                wanted, pattern = key.split(" ", 1)
                if value[1] > 0 and wanted == method and re.search(pattern, path):
                    value[1] -= 1
                    status, _, code, headers = [*value, None, None][:4]
                    return Failure(status, code, headers or {})
        return None

    def cut(self, name: str, length: int) -> int | None:
        """Bytes after which the connection of this answer is cut."""
        with self._lock:
            for end, n_bytes in self.truncate.items():
                if name.endswith(end) and length > n_bytes:
                    del self.truncate[end]
                    return n_bytes
        return None

    def silence(self, name: str, length: int) -> tuple[int, float] | None:
        """Bytes after which this answer falls silent, and for how long."""
        with self._lock:
            for end, value in self.stall.items():
                n_bytes, seconds, times = value
                if name.endswith(end) and length > n_bytes and times > 0:
                    value[2] -= 1
                    return n_bytes, seconds
        return None

    def lie_about(self, name: str) -> str | None:
        """What is wrong with this answer."""
        with self._lock:
            for end, value in self.lie.items():
                if name.endswith(end) and value[1] > 0:
                    value[1] -= 1
                    return str(value[0])
        return None

    def is_expired(self, address: str) -> bool:
        """Count a use of a signed address."""
        with self._lock:
            self._uses[address] = self._uses.get(address, 0) + 1
            return self.address_uses is not None and self._uses[address] > self.address_uses
