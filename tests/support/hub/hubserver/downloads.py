"""Files: which address has their bytes for the moment, and ranges of these bytes."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from support.hub.hubserver.store import File, commit_of

if TYPE_CHECKING:
    from support.hub.hubserver.handling import Handler

_KINDS = {None: "models", "datasets/": "datasets", "spaces/": "spaces"}
_WRITTEN_AT_ONCE = 2**18


def resolve(request: Handler, prefix: str | None, name: str, revision: str, path: str) -> None:
    """A regular file itself; of a large one where it lies."""
    kind, path = _KINDS[prefix], unquote(path)
    repo = request.hub.store.repos.get(f"{kind}/{name}")
    if repo is None or (repo["private"] and not request.may_write):
        request.error(404 if request.token else 401, "RepoNotFound", "Repository not found")
        return
    if request.token not in request.hub.faults.gated.get(name, [request.token]):
        request.error(403 if request.token else 401, "GatedRepo", "Access is restricted")
        return
    found = commit_of(repo, unquote(revision))
    if found is None:
        request.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return
    commit, file = found[0], found[1]["files"].get(path)
    if file is None:
        headers = {"X-Repo-Commit": commit}
        request.error(404, "EntryNotFound", "Entry not found", headers)
        return
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if file["lfs"]:
        route = f"{request.base}/api/{kind}/{name}/xet-read-token/{commit}"
        headers |= _linked(request, file, path, route)
        request.send(302, b"", "text/plain", headers)
    else:
        _send_content(request, file["sha256"], headers | {"ETag": f'"{file["oid"]}"'}, path)


def _linked(request: Handler, file: File, path: str, token_route: str) -> dict[str, str]:
    """The headers that lead to a large file; its address is another one each time, as signed."""
    address = f"cdn/{file['sha256']}?fn={quote(path)}&signature={uuid.uuid4().hex}"
    headers = {
        "X-Linked-Size": str(file["size"]),
        "X-Linked-ETag": f'"{file["sha256"]}"',
        "ETag": f'"{file["oid"]}"',
        "Location": f"{request.storage}/{address}",
    }
    if file.get("xet"):
        headers |= {"X-Xet-Hash": file["xet"], "X-Xet-Refresh-Route": token_route}
        headers["Link"] = f'<{token_route}>; rel="xet-auth"'
    return headers


def signed(request: Handler, sha: str) -> None:
    """The storage behind the Hub, which knows no token and lets addresses expire."""
    if request.token:
        request.error(400, None, "a token came to the storage")
    elif request.hub.faults.is_expired(request.query.get("signature", "")):
        request.error(403, None, "Request has expired")
    else:
        _send_content(request, sha, {"ETag": f'"{sha}"'}, request.query.get("fn", ""))


@dataclass
class _Content:
    """What an answer has of a file: bytes `first` to `last`, and what it says of them."""

    first: int
    last: int
    status: int
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def _send_content(request: Handler, sha: str, headers: dict[str, str], name: str) -> None:
    path = request.hub.store.blob(sha)
    if not path.exists():
        request.error(404, None, "no such object")
        return
    size = path.stat().st_size
    content = _range(request.headers.get("Range"), size, headers)
    if content is None:
        request.send(416, headers={"Content-Range": f"bytes */{size}"})
        return
    is_get = request.command == "GET"
    lie = request.hub.faults.lie_about(name) if is_get else None
    if lie:
        _falsify(content, lie, size)
    request.send_response(content.status)
    request.trace(st=content.status)
    sent = {"Accept-Ranges": "bytes", "Content-Length": str(content.length), **content.headers}
    for key, value in {**sent, "Content-Type": "application/octet-stream"}.items():
        request.send_header(key, value)
    request.end_headers()
    if is_get:
        _write(request, path, content, name, corrupt=lie == "corrupt")


def _range(asked: str | None, size: int, headers: dict[str, str]) -> _Content | None:
    """What a Range header means; None where there is no such byte."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not match or not any(match.groups()):
        return _Content(0, size - 1, 200, dict(headers))
    start, end = match.groups()
    first = int(start) if start else max(0, size - int(end))
    last = min(int(end), size - 1) if start and end else size - 1
    if first >= size or first > last:
        return None
    return _Content(first, last, 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})


def _falsify(content: _Content, lie: str, size: int) -> None:
    """Make the answer a wrong one."""
    span = f"bytes {content.first}-{content.last}"
    if lie == "size":
        content.headers["Content-Range"] = f"{span}/{size + 1}"
    elif lie == "range":
        content.first, content.last = max(0, content.first - 1), max(0, content.last - 1)
        content.headers["Content-Range"] = f"bytes {content.first}-{content.last}/{size}"
    elif lie == "whole":
        content.first, content.last, content.status = 0, size - 1, 200
        content.headers.pop("Content-Range", None)
    elif lie == "etag":
        content.headers["ETag"] = '"another"'
    elif lie == "short":
        content.last -= 1
    elif lie == "long":
        content.last = min(content.last + 1, size - 1)
    elif lie == "encoded":
        content.headers["Content-Encoding"] = "gzip"


def _write(request: Handler, path: Path, content: _Content, name: str, *, corrupt: bool) -> None:
    faults = request.hub.faults
    cut, silence = faults.cut(name, content.length), faults.silence(name, content.length)
    left, sent, started = content.length if cut is None else cut, 0, time.monotonic()
    try:
        with path.open("rb") as file:
            if not (cut or silence or corrupt or faults.pace):
                # The kernel's own way: the server shall not be what a benchmark measures.
                request.wfile.flush()
                sent = request.connection.sendfile(file, content.first, left)
                left = 0
            file.seek(content.first)
            while left > 0 and (piece := file.read(min(_WRITTEN_AT_ONCE, left))):
                if corrupt and not sent:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                if silence and sent + len(piece) > silence[0]:
                    request.wfile.flush()
                    time.sleep(silence[1])
                    silence = None
                request.wfile.write(piece)
                left, sent = left - len(piece), sent + len(piece)
                if faults.pace:
                    time.sleep(max(0.0, started + sent / faults.pace - time.monotonic()))
    finally:
        request.trace(sent=sent, name=name, first=content.first)
    if cut is not None:
        request.wfile.flush()
        request.close_connection = True
        request.connection.close()
