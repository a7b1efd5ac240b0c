"""Changes of a repository: commits, branches and tags."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from support.hub.hubserver import xet
from support.hub.hubserver.store import (
    PREFIXES,
    File,
    Repo,
    Store,
    commit_of,
    git_oid,
    new_commit,
    pointer,
)

if TYPE_CHECKING:
    from support.hub.hubserver.handling import Handler


class Refused(Exception):
    """Status, code and text of the answer."""


def commit(request: Handler, repo: Repo, revision: str, body: bytes) -> None:
    """A commit as lines of JSON: a header, then one operation a line."""
    head, *operations = [json.loads(line) for line in body.splitlines() if line.strip()]
    store, branch_name, pull_request = request.hub.store, unquote(revision), None
    with store.lock:
        try:
            oid = _commit(store, repo, branch_name, head["value"], operations)
            if "create_pr" in request.query:
                pull_request = _open_pull_request(repo, branch_name, oid)
        except Refused as refused:
            request.error(*refused.args)
            return
        store.save()
    page = f"{request.base}/{PREFIXES[repo['kind']]}{repo['id']}"
    done = {
        "success": True,
        "commitOid": oid,
        "commitUrl": f"{page}/commit/{oid}",
        "hookOutput": "",
    }
    if pull_request is not None:
        done["pullRequestUrl"] = f"{page}/discussions/{pull_request}"
    kinds = [each["key"] + ":" + ",".join(sorted(each["value"])) for each in (head, *operations)]
    note = {"ctype": request.headers.get("Content-Type"), "ops": kinds}
    request.send(200, done, note=note)


def _commit(
    store: Store, repo: Repo, branch_name: str, head: dict[str, Any], operations: list[Any]
) -> str:
    if branch_name not in repo["branches"]:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch_name}")
    parent, wanted = repo["branches"][branch_name], head.get("parentCommit")
    if wanted and not parent.startswith(wanted):
        text = "A commit has happened since. Please refresh and try again."
        raise Refused(412, None, text)
    files = dict(repo["commits"][parent]["files"])
    for operation in operations:
        _apply(store, files, operation["key"], operation["value"])
    oid = new_commit(repo, files, parent, head["summary"], head.get("description", ""))
    repo["branches"][branch_name] = oid
    return oid


def _open_pull_request(repo: Repo, branch_name: str, oid: str) -> int:
    """Give the new commit to a pull request, and the branch its old one back."""
    number = 1 + sum(name.startswith("refs/pr/") for name in repo["branches"])
    repo["branches"][f"refs/pr/{number}"] = oid
    repo["branches"][branch_name] = repo["commits"][oid]["parent"]
    return number


def _apply(store: Store, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        content = value["content"]
        data = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
        files[path] = store.regular(data)
    elif key == "lfsFile":
        files[path] = _large(store, path, value["oid"], value.get("size"))
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise Refused(400, None, f"unknown operation {key}")


def _large(store: Store, path: str, oid: str, size: int | None) -> File:
    """A file whose bytes were uploaded before."""
    in_xet = xet.index(store.local_cas).get(oid) if store.local_cas else None
    if in_xet and not store.blob(oid).exists():
        xet.fetch(store, oid, *in_xet)
    if not store.blob(oid).exists():
        raise Refused(400, None, f"LFS object {oid} was not uploaded ({path})")
    found = store.blob(oid).stat().st_size
    if size not in (None, found):
        raise Refused(400, None, "size mismatch")
    entry = {"oid": git_oid(pointer(oid, found)), "sha256": oid, "size": found, "lfs": True}
    return entry | ({"xet": in_xet[0]} if in_xet else {})


def branch(request: Handler, repo: Repo, name: str, body: bytes) -> None:
    asked = json.loads(body or b"{}")
    _name(request, repo, "branches", unquote(name), asked.get("startingPoint") or "main")


def tag(request: Handler, repo: Repo, name: str, body: bytes) -> None:
    if request.command == "DELETE":
        _name(request, repo, "tags", unquote(name), "")
    else:
        _name(request, repo, "tags", json.loads(body)["tag"], unquote(name) or "main")


def _name(request: Handler, repo: Repo, kind: str, name: str, start: str) -> None:
    """Give a commit a name, or take one away."""
    names = repo[kind]
    with request.hub.store.lock:
        if request.command == "DELETE":
            names.pop(name, None)
        elif name in names:
            request.error(409, None, "Reference already exists")
            return
        elif found := commit_of(repo, start):
            names[name] = found[0]
        else:
            request.error(404, "RevisionNotFound", f"Invalid rev id: {start}")
            return
        request.hub.store.save()
    request.send(200, {})


def decoded(text: str) -> bytes:
    return base64.b64decode(text)
