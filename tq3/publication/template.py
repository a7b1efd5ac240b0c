"""A card's text from a template, and how an untouched one of ours is told from one that is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from tq3.errors import BadInput, UsageError
from tq3.format.manifest import digest
from tq3.storage.failures import reading

_TEMPLATE = Path(__file__).with_name("card_template.md")
_MARK = "<!-- written by tq3 push, {}: once edited, this card is yours and is kept -->\n"
_LAST_LINE = re.compile(_MARK.format("([0-9a-f]{16})"))


def read_template(path: Path | None) -> str:
    """The user's template, or ours. Raises StorageError, or BadInput for what is not UTF-8."""
    file = path or _TEMPLATE
    try:
        with reading(file):
            return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: {error.reason} at byte {error.start}", file=file) from None


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """The card: every $name of the template replaced, our mark as its last line.

    Raises UsageError for a $name without a value.
    """
    try:
        text = Template(template).substitute(values)
    except KeyError as error:
        known = ", ".join(f"${name}" for name in sorted(values))
        raise UsageError(f"the template has an unknown ${error.args[0]}", expected=known) from None
    except ValueError as error:
        raise UsageError(f"the template: {error}", fix="write $$ for a dollar sign") from None
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n\n"
    return text + _MARK.format(digest(text.encode()))


def is_untouched(card: str) -> bool:
    """Whether a card is as we wrote it: its mark is the checksum of all that stands before."""
    *_, last = card.splitlines(keepends=True) or [""]
    mark = _LAST_LINE.fullmatch(last)
    return mark is not None and mark[1] == digest(card[: -len(last)].encode())
