"""JSON as it is written: a key added to a text or removed, all other bytes as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def finite(value: Any) -> Any:
    """Plain data with None for infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def insert_key(text: str, key: str, value: Any) -> str:
    """`text` with `"key": value` as its last member, indented as the other members are.

    Raises ValueError when `text` is not a JSON object or has the key already.
    """
    members = list(_members(text))
    if any(name == key for name, _, _ in members):
        raise ValueError(f"{key!r} is there already")
    if not members:
        start = text.index("{") + 1
        return text[:start] + _compact(key, value) + text[start:]
    gap = _SPACE.match(text, text.index("{") + 1)[0]  # type: ignore[index]
    end = members[-1][2]
    member = _dump(key, value, gap.rpartition("\n")[2]) if "\n" in gap else _compact(key, value)
    return text[:end] + "," + (gap or " ") + member + text[end:]


def remove_key(text: str, key: str) -> str:
    """`text` without its top-level members `key`; the inverse of `insert_key`. Raises ValueError.

    Some writers repeat a key, and readers take the last: all of them go.
    """
    members = list(_members(text))
    nexts = [start for _, start, _ in members[1:]] + [end for _, _, end in members[-1:]]
    kept, position, last_end = [], 0, None
    for (name, start, end), next_start in zip(members, nexts, strict=True):
        if name != key:
            last_end = end
        elif last_end is None:
            kept.append(text[position:start])
            position = next_start
        else:
            kept.append(text[position:last_end])
            position = end
    return "".join((*kept, text[position:]))


def remove_everywhere(text: str, is_meant: Callable[[str, Any], bool]) -> str:
    """`text` without members of which this is true, by name and value, at any depth of objects.

    Raises ValueError.
    """
    members = [
        (key, _DECODER.raw_decode(text, _value(text, start))[0]) for key, start, _ in _members(text)
    ]
    for key, value in members:
        if is_meant(key, value):
            text = remove_key(text, key)
    for _, start, end in reversed(list(_members(text))):
        at = _value(text, start)
        if text[at] == "{":
            text = text[:at] + remove_everywhere(text[at:end], is_meant) + text[end:]
    return text


def _value(text: str, start: int) -> int:
    """Where the value of the member starts whose key starts there."""
    return _skip(text, text.index(":", _DECODER.raw_decode(text, start)[1]) + len(":"))


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Each top-level member: its key, where the key starts, where the value ends."""
    if not isinstance(json.loads(text), dict):
        raise ValueError("not a JSON object")
    position = _skip(text, text.index("{") + 1)
    while text[position] != "}":
        start = position
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + len(":"))
        _, end = _DECODER.raw_decode(text, position)
        yield key, start, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


def _dump(key: str, value: Any, indent: str) -> str:
    step = indent or "  "
    lines = json.dumps(value, indent=step).splitlines()
    return f"{json.dumps(key)}: " + ("\n" + indent).join(lines)


def _compact(key: str, value: Any) -> str:
    return f"{json.dumps(key)}: {json.dumps(value)}"
