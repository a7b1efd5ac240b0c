"""JSON that somebody else wrote: what would overwhelm us, or means two things, is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tq3.errors import BadInput

# A million tensors have half as many. An item takes up to 100 bytes, however short its text is.
_MAX_ITEMS = 10_000_000
# Whatever looks at a value later, also to show it, may recurse this deep.
_MAX_DEPTH = 100


def parse_json(text: str, *, unique: bool) -> Any:
    """The value of a JSON text; with `unique` no object may have a key twice.

    Raises ValueError with a text that ends the sentence "it is ...".
    """
    n_items = sum(text.count(mark) for mark in "[{,")
    if n_items > _MAX_ITEMS:
        raise ValueError(f"too large: {n_items} brackets and commas, at most {_MAX_ITEMS}")
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except _Ambiguous:
        raise
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def parse_object(text: str, file: str, *, unique: bool = True) -> dict[str, Any]:
    """A JSON object. Raises BadInput naming `file` for anything else."""
    try:
        value = parse_json(text, unique=unique)
    except ValueError as error:
        raise BadInput(str(error), file=file) from None
    if not isinstance(value, dict):
        raise BadInput("not a JSON object", file=file, found=type(value).__name__)
    return value


class _Ambiguous(ValueError):
    """An object with a key twice: every reader may believe another value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Ambiguous(f"ambiguous: it has the key {twice!r} twice")
    return result


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise _too_deep()


def _containers(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {_MAX_DEPTH} levels deep")
