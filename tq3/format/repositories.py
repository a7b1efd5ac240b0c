"""What a repository of the Hub can be called: huggingface_hub's rule, without loading it."""

from __future__ import annotations

import re

from tq3.errors import UsageError

_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)


def is_repository_name(text: str) -> bool:
    """Whether this is NAME or ORGANISATION/NAME, as a repository of the Hub may be called."""
    is_forbidden = "--" in text or ".." in text or text.endswith(".git")
    return bool(_NAME.fullmatch(text)) and not is_forbidden


def check_repository_name(text: str) -> None:
    """Raise UsageError for what no repository can be called."""
    if not is_repository_name(text):
        raise UsageError(
            "no repository has such a name", found=repr(text), expected="ORG/NAME or NAME"
        )
