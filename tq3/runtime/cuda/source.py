"""The text of a kernel, with what it includes: a compiler needs no folder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def kernel(name: str) -> str:
    """The source of `name`.cu, each file that it includes in it once."""
    return _with_includes(f"{name}.cu", set())


def _with_includes(file: str, seen: set[str]) -> str:
    seen.add(file)
    return re.sub(
        r'^#include "(.*)"$',
        lambda found: "" if found[1] in seen else _with_includes(found[1], seen),
        (_FOLDER / file).read_text(),
        flags=re.MULTILINE,
    )
