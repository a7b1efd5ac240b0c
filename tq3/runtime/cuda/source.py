"""The text of a kernel, with what it includes: a compiler needs no folder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def kernel(name: str) -> str:
    """The source of `name`.cu."""
    return re.sub(
        r'^#include "(.*)"$',
        lambda found: (_FOLDER / found[1]).read_text(),
        (_FOLDER / f"{name}.cu").read_text(),
        flags=re.MULTILINE,
    )
