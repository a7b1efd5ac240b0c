"""Who is asking, which repositories there are, and the faults that a test wants."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from support.hub.hubserver.store import PREFIXES

if TYPE_CHECKING:
    from support.hub.hubserver.handling import Handler

_USER = {
    "type": "user",
    "id": "u1",
    "name": "tester",
    "fullname": "Tester",
    "email": "t@example.com",
    "isPro": False,
    "orgs": [{"type": "org", "id": "o1", "name": "acme", "fullname": "Acme", "roleInOrg": "admin"}],
    "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
}
_TEXTS = {"pipeline_tag", "library_name", "license_name"}
_TEXTS_OR_LISTS = {"license", "language", "tags", "base_model"}
_RELATIONS = ("finetune", "adapter", "merge", "quantized")
_WHO = "Invalid username or password."


def control(request: Handler) -> None:
    request.hub.faults.set(json.loads(request.body()))
    request.send(200, {"ok": True})


def whoami(request: Handler) -> None:
    if not request.may_write or not request.token:
        request.error(401, None, _WHO)
    else:
        request.send(200, _USER)


def validate_yaml(request: Handler) -> None:
    """What the Hub says of a card's metadata, as far as it is known."""
    errors = [{"message": text} for text in _wrong_metadata(json.loads(request.body())["content"])]
    request.send(400 if errors else 200, {"errors": errors, "warnings": []})


def _wrong_metadata(card: str) -> Iterator[str]:
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        metadata = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        yield f"not YAML: {error}"
        return
    if not isinstance(metadata, dict):
        yield "not a mapping"
        return
    for key in _TEXTS & metadata.keys():
        if not isinstance(metadata[key], str):
            yield f'"{key}" must be a string'
    for key in _TEXTS_OR_LISTS & metadata.keys():
        values = metadata[key] if isinstance(metadata[key], list) else [metadata[key]]
        if not all(isinstance(value, str) for value in values):
            yield f'"{key}" must be a string or a list of strings'
    if metadata.get("base_model_relation", "quantized") not in _RELATIONS:
        yield '"base_model_relation" is none of the known'


def create(request: Handler) -> None:
    asked, store = json.loads(request.body()), request.hub.store
    if not request.may_write:
        request.error(401, None, _WHO)
        return
    kind, name = _named(asked)
    url = f"{request.base}/{PREFIXES[kind]}{name}"
    with store.lock:
        if f"{kind}/{name}" in store.repos:
            taken = {"error": "You already created this model repo", "url": url}
            request.send(409, taken, note=asked)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        store.create(kind, name, private)
        store.save()
    made = {"url": url, "name": name, "id": hashlib.md5(name.encode()).hexdigest()[:24]}
    request.send(200, made, note=asked)


def delete(request: Handler) -> None:
    kind, name = _named(json.loads(request.body()))
    with request.hub.store.lock:
        request.hub.store.repos.pop(f"{kind}/{name}", None)
        request.hub.store.save()
    request.send(200, {})


def _named(asked: dict[str, Any]) -> tuple[str, str]:
    kind = (asked.get("type") or "model") + "s"
    return kind, f"{asked.get('organization') or 'tester'}/{asked['name']}"
