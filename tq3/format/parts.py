"""A part of a compression that several processes share: its number, and of how many."""

from __future__ import annotations

import re
from typing import NamedTuple

from tq3.errors import UsageError

_MOST = 999  # each has an open file while they are joined
_WRITTEN = re.compile(r"(\d{1,4})/(\d{1,4})", re.ASCII)


class Part(NamedTuple):
    """Part `number` of so many, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def make_part(given: str | tuple[int, int] | None) -> Part | None:
    """The part that "3/16" or (3, 16) asks for. Raises UsageError for what is none."""
    if given is None:
        return None
    if isinstance(given, str):
        match = _WRITTEN.fullmatch(given)
        part = Part(*map(int, match.groups())) if match else None
    else:
        part = Part(*given)
    if part is None or not 1 <= part.number <= part.of <= _MOST:
        shown = given if isinstance(given, str) else "/".join(map(str, given))
        raise UsageError(
            f"--part {shown} is no part",
            expected=f"I/N such as 3/16, with I from 1 to N and N at most {_MOST}",
        )
    return part


def numbers_in_words(numbers: list[int]) -> str:
    """ "1", "1 and 2" or "1 to 3, 5 and 7" for sorted numbers without repetition."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown: list[str] = []
    for run in runs:
        shown += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return " and ".join([*([", ".join(shown[:-1])] if shown[1:] else []), *shown[-1:]])
