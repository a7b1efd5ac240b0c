"""Uploads by Git LFS: in one piece or in several."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.hub.hubserver.handling import Handler


def batch(request: Handler, _kind: str | None, _name: str) -> None:
    """Where each object is to be put, or fetched."""
    asked = json.loads(request.body())
    if asked["operation"] == "upload" and not request.may_write:
        request.error(401, None, "auth")
        return
    (request.hub.store.root / "parts").mkdir(exist_ok=True)
    objects = [_object(request, asked, each) for each in asked["objects"]]
    several = any(
        "chunk_size" in each.get("actions", {}).get("upload", {}).get("header", {})
        for each in objects
    )
    answer = {"transfer": "multipart" if several else "basic", "objects": objects}
    note = {"keys": sorted(asked), "transfers": asked.get("transfers"), "ref": asked.get("ref")}
    note["accept"] = request.headers.get("Accept")
    kind = "application/vnd.git-lfs+json"
    request.send(200, answer | {"hash_algo": "sha256"}, kind, note=note)


def _object(request: Handler, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    oid, size, chunk = wanted["oid"], wanted["size"], request.hub.options.chunk
    if asked["operation"] == "download":
        actions = {"download": {"href": f"{request.base}/cdn/{oid}", "header": {}}}
        return {"oid": oid, "size": size, "authenticated": True, "actions": actions}
    if request.hub.store.blob(oid).exists():
        return {"oid": oid, "size": size}
    upload: dict[str, Any] = {"href": f"{request.storage}/lfs/single/{oid}", "header": {}}
    if size > chunk and "multipart" in asked.get("transfers", []):
        parts = {
            f"{number + 1:05d}": f"{request.storage}/lfs/part/{oid}/{number + 1}"
            for number in range(-(-size // chunk))
        }
        upload = {
            "href": f"{request.base}/lfs/complete/{oid}",
            "header": {"chunk_size": str(chunk), **parts},
        }
    verify = {"href": f"{request.base}/lfs/verify/{oid}", "header": {}}
    actions = {"verify": verify, "upload": upload}
    return {"oid": oid, "size": size, "authenticated": True, "actions": actions}


def store(request: Handler, what: str, oid: str, part: str | None) -> None:
    """Take a piece, put pieces together, or say whether an object is there."""
    data, hub_store = request.body(), request.hub.store
    if what == "single" and hashlib.sha256(data).hexdigest() != oid:
        request.error(400, None, "sha256 mismatch")
    elif what == "single":
        hub_store.put(data)
        request.send(200, headers=_etag(data))
    elif what == "part":
        (hub_store.root / "parts" / f"{oid}.{part}").write_bytes(data)
        request.send(200, headers=_etag(data))
    elif what == "complete":
        _complete(request, oid, json.loads(data))
    else:
        asked, blob = json.loads(data), hub_store.blob(oid)
        there = blob.exists() and blob.stat().st_size == asked["size"]
        request.send(200 if there else 400, {} if there else {"error": "not found"}, note=asked)


def _complete(request: Handler, oid: str, asked: dict[str, Any]) -> None:
    hub_store = request.hub.store
    state, draft = hashlib.sha256(), hub_store.root / "blobs" / f"{oid}.tmp"
    with draft.open("wb") as out:
        for each in asked["parts"]:
            piece = (hub_store.root / "parts" / f"{oid}.{each['partNumber']}").read_bytes()
            if hashlib.md5(piece).hexdigest() != each["etag"].strip('"'):
                request.error(400, None, "etag mismatch")
                return
            state.update(piece)
            out.write(piece)
    if state.hexdigest() != oid:
        draft.unlink()
        request.error(400, None, "sha256 mismatch")
        return
    draft.replace(hub_store.blob(oid))
    request.send(200, {"success": True}, note={"keys": sorted(asked)})


def _etag(data: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
