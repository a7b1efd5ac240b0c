"""One request: what it asks for, and the ways to answer it."""

from __future__ import annotations

import io
import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from support.hub.hubserver import accounts, downloads, lfs, models
from support.hub.hubserver.faults import Faults
from support.hub.hubserver.store import Store

_SHA = "([0-9a-f]{64})"
_KIND = "(datasets/|spaces/)?"
_NAME = "([^/]+/[^/]+)"
Answer = Callable[..., None]

ROUTES: tuple[tuple[str, Answer], ...] = (
    ("/_ctl", accounts.control),
    ("/api/whoami-v2", accounts.whoami),
    ("/api/validate-yaml", accounts.validate_yaml),
    ("/api/repos/create", accounts.create),
    ("/api/repos/delete", accounts.delete),
    (f"/lfs/(single|part|complete|verify)/{_SHA}(?:/(\\d+))?", lfs.store),
    (f"/{_KIND}{_NAME}\\.git/info/lfs/objects/batch", lfs.batch),
    (f"/cdn/{_SHA}", downloads.signed),
    (f"/{_KIND}{_NAME}/(?:resolve|raw)/([^/]+)/(.+)", downloads.resolve),
    (f"/api/(models|datasets|spaces)/{_NAME}(?:/(.*))?", models.answer),
    ("/api/(models|datasets)", models.list_all),
)


@dataclass(frozen=True)
class Server:
    """What all requests share."""

    store: Store
    faults: Faults
    options: Namespace


class Handler(BaseHTTPRequestHandler):
    """Answers by the table above."""

    protocol_version = "HTTP/1.1"
    server_version = "minihub/2"
    hub: Server
    path_only: str
    query: dict[str, str]

    def log_message(self, *_: object) -> None:
        """Not to the terminal; --trace has it."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.path_only, self.query = url.path, dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        failure = self.hub.faults.failure(self.command, self.path_only)
        if failure:
            self.body()
            self.close_connection = True
            self.error(failure.status, failure.code, "injected failure", failure.headers)
            return
        for pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.path_only)
            if match:
                answer(self, *match.groups())
                return
        self.body()
        self.error(404, None, "Not Found")

    def body(self) -> bytes:
        """What was sent along."""
        if (self.headers.get("Transfer-Encoding") or "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        out = io.BytesIO()
        while n_bytes := int(self.rfile.readline().split(b";")[0], 16):
            out.write(self.rfile.read(n_bytes))
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass
        return out.getvalue()

    def send(
        self,
        status: int,
        body: Any = b"",
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
        note: Any = None,
    ) -> None:
        """A whole answer; lists and dicts become JSON. `note`: for the trace."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.trace(st=status, note=note)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(
        self, status: int, code: str | None, text: str, headers: dict[str, str] | None = None
    ) -> None:
        """An error as the Hub words it."""
        codes = {"X-Error-Code": code} if code else {}
        self.send(
            status, {"error": text}, headers={"X-Error-Message": text, **codes, **(headers or {})}
        )

    def trace(self, **facts: Any) -> None:
        """A line about this request."""
        if not self.hub.options.trace:
            return
        line = {
            "m": self.command,
            "p": self.path,
            "range": self.headers.get("Range"),
            "len": self.headers.get("Content-Length"),
            "te": self.headers.get("Transfer-Encoding"),
            "auth": (self.headers.get("Authorization") or "")[:12],
            **facts,
        }
        with self.hub.store.lock, self.hub.options.trace.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def token(self) -> str | None:
        """The token that came with the request."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    @property
    def may_write(self) -> bool:
        """Whether the token is the one that the server knows; without one everybody may."""
        return self.hub.options.token in (None, self.token)

    @property
    def base(self) -> str:
        return f"http://{self.headers.get('Host') or f'127.0.0.1:{self.hub.options.port}'}"

    @property
    def storage(self) -> str:
        """Another origin than the Hub's, as in earnest: a client must not send it the token."""
        here, there = "127.0.0.1", "localhost"
        return (
            self.base.replace(here, there) if here in self.base else self.base.replace(there, here)
        )
