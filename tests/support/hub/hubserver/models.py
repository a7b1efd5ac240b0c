"""What /api/models/ORGANISATION/NAME/... tells of a repository."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlencode

import yaml

from support.hub.hubserver import commits
from support.hub.hubserver.store import Commit, File, Repo, Store, commit_of, is_large, pointer

if TYPE_CHECKING:
    from support.hub.hubserver.handling import Handler


def list_all(request: Handler, kind: str) -> None:
    repos = (repo for repo in request.hub.store.repos.values() if repo["kind"] == kind)
    request.send(200, [_brief(repo) for repo in repos])


def answer(request: Handler, kind: str, name: str, rest: str | None) -> None:
    """One operation on a repository, by the first word behind its name."""
    changes = request.command in ("POST", "PUT", "DELETE")
    body = request.body() if changes else b""
    repo = request.hub.store.repos.get(f"{kind}/{name}")
    if repo is None or (repo["private"] and not request.may_write):
        request.error(404 if request.token else 401, "RepoNotFound", "Repository not found")
        return
    operation, _, argument = (rest or "").partition("/")
    if changes and operation != "paths-info" and not request.may_write:
        request.error(401, None, "Invalid username or password.")
        return
    known = _OPERATIONS.get(operation)
    if known is None:
        request.error(404, None, f"unknown operation {operation}")
    else:
        known(request, repo, argument, body)


def _commit(request: Handler, repo: Repo, revision: str) -> tuple[str, Commit] | None:
    """The commit, or an answer that there is none."""
    found = commit_of(repo, unquote(revision))
    if found is None:
        request.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return found


def _info(request: Handler, repo: Repo, revision: str, _: bytes) -> None:
    found = _commit(request, repo, revision or "main")
    if found is None:
        return
    oid, commit = found
    files = sorted(commit["files"].items())
    facts = _brief(repo) | {
        "_id": hashlib.md5(repo["id"].encode()).hexdigest()[:24],
        "author": repo["id"].split("/")[0],
        "sha": oid,
        "lastModified": commit["date"],
        "gated": "manual" if repo["id"] in request.hub.faults.gated else False,
        "disabled": False,
        "siblings": [_sibling(path, file, blobs="blobs" in request.query) for path, file in files],
        "usedStorage": sum(file["size"] for _, file in files),
    }
    store = request.hub.store
    card = _card(store, commit)
    if card is not None:
        facts["cardData"] = card
    if repo["kind"] == "models" and "config.json" in commit["files"]:
        config = _json(store, commit["files"]["config.json"])
        facts["config"] = {
            key: config[key] for key in ("architectures", "model_type") if key in config
        }
    request.send(200, facts)


def _brief(repo: Repo) -> dict[str, Any]:
    facts = {"id": repo["id"], "modelId": repo["id"], "private": repo["private"], "tags": []}
    return facts | {"downloads": 0, "likes": 0, "createdAt": repo["created"]}


def _sibling(path: str, file: File, *, blobs: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"rfilename": path}
    if blobs:
        line |= {"size": file["size"], "blobId": file["oid"]}
        if file["lfs"]:
            line["lfs"] = {"sha256": file["sha256"], **_sizes(file)}
    return line


def _sizes(file: File) -> dict[str, int]:
    return {"size": file["size"], "pointerSize": len(pointer(file["sha256"], file["size"]))}


def _json(store: Store, file: File) -> dict[str, Any]:
    try:
        read = json.loads(store.blob(file["sha256"]).read_bytes())
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _card(store: Store, commit: Commit) -> Any:
    """The YAML at the top of README.md; None without a README."""
    file = commit["files"].get("README.md")
    if file is None:
        return None
    text = store.blob(file["sha256"]).read_text(errors="replace")
    head = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        return (yaml.safe_load(head.group(1)) if head else None) or {}
    except yaml.YAMLError:
        return {}


def _tree(request: Handler, repo: Repo, argument: str, _: bytes) -> None:
    revision, below = argument.partition("/")[::2]
    found = _commit(request, repo, revision)
    if found is None:
        return
    below = unquote(below).strip("/")
    everything = request.query.get("recursive") in ("true", "True", "1")
    items = _entries(found, f"{below}/" if below else "", everything=everything)
    if below and not items:
        request.error(404, "EntryNotFound", f"{below} does not exist")
        return
    page, start, headers = request.hub.options.page, int(request.query.get("cursor", 0)), {}
    if start + page < len(items):
        query = urlencode(request.query | {"cursor": str(start + page)})
        headers["Link"] = f'<{request.base}{request.path_only}?{query}>; rel="next"'
    request.send(200, items[start : start + page], headers=headers)


def _entries(found: tuple[str, Commit], prefix: str, *, everything: bool) -> list[dict[str, Any]]:
    """Files and folders below `prefix`, a folder before what is in it."""
    oid, commit = found
    items: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit["files"].items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if everything or depth == 1:
                folder_oid = hashlib.sha1((oid + folder).encode()).hexdigest()
                entry = {"type": "directory", "oid": folder_oid, "size": 0, "path": folder}
                items.setdefault(folder, entry)
        if len(parts) == 1 or everything:
            items[path] = _entry(path, file)
    return list(items.values())


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
    if file["lfs"]:
        entry["lfs"] = {"oid": file["sha256"], **_sizes(file)}
    return entry | ({"xetHash": file["xet"]} if file.get("xet") else {})


def _paths_info(request: Handler, repo: Repo, revision: str, body: bytes) -> None:
    found = _commit(request, repo, revision)
    if found is None:
        return
    kind, files = request.headers.get("Content-Type", ""), found[1]["files"]
    paths = (
        json.loads(body)["paths"] if "json" in kind else parse_qs(body.decode()).get("paths", [])
    )
    asked = [paths] if isinstance(paths, str) else paths
    request.send(200, [_entry(path, files[path]) for path in asked if path in files], note=kind)


def _refs(request: Handler, repo: Repo, _: str, __: bytes) -> None:
    def lines(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    branches, tags = lines(repo["branches"], "heads"), lines(repo["tags"], "tags")
    request.send(200, {"branches": branches, "tags": tags, "converts": []})


def _history(request: Handler, repo: Repo, revision: str, _: bytes) -> None:
    found, lines = _commit(request, repo, revision), []
    if found is None:
        return
    oid: str | None = found[0]
    while oid:
        commit = repo["commits"][oid]
        facts = {key: commit[key] for key in ("title", "message", "date")}
        lines.append({"id": oid, **facts, "authors": [{"user": "tester"}]})
        oid = commit["parent"]
    request.send(200, lines)


def _preupload(request: Handler, repo: Repo, revision: str, body: bytes) -> None:
    """Which files of a commit to come are large."""
    found = _commit(request, repo, revision)
    if found is None:
        return
    asked, files = json.loads(body), found[1]["files"]
    lines = []
    for file in asked["files"]:
        large = is_large(file["path"], file["size"], commits.decoded(file.get("sample") or ""))
        line = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
        old = files.get(file["path"])
        known = {"oid": old["sha256"] if old["lfs"] else old["oid"]} if old else {}
        lines.append({**line, "shouldIgnore": False, **known})
    keys = sorted(asked["files"][0]) if asked["files"] else []
    note = {"keys": sorted(asked), "file_keys": keys}
    request.send(200, {"files": lines, "commitOid": found[0]}, note=note)


def _xet_token(request: Handler, _: Repo, __: str, ___: bytes) -> None:
    cas, expires = request.hub.store.local_cas, int(time.time()) + 3600
    if not cas:
        request.error(404, None, "xet is not enabled on this server")
        return
    headers = {
        "X-Xet-Cas-Url": cas,
        "X-Xet-Access-Token": "xet_local",
        "X-Xet-Token-Expiration": str(expires),
    }
    token = {"casUrl": cas, "accessToken": "xet_local", "exp": expires}
    request.send(200, token, headers=headers)


def _settings(request: Handler, _: Repo, __: str, ___: bytes) -> None:
    request.send(200, {})


_OPERATIONS = {
    "": _info,
    "revision": _info,
    "tree": _tree,
    "paths-info": _paths_info,
    "refs": _refs,
    "commits": _history,
    "preupload": _preupload,
    "xet-write-token": _xet_token,
    "xet-read-token": _xet_token,
    "settings": _settings,
    "commit": commits.commit,
    "branch": commits.branch,
    "tag": commits.tag,
}
