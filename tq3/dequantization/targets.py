"""Which of several config_groups of compressed-tensors a module is quantised by.

A target is the name of a module, "re:" and a pattern, or the name of a class, in this order of
precedence. Tensors don't tell classes: a group with one may be meant for any module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tq3.dequantization.declared import Integers

_PATTERN = "re:"
_MOST_REPEATS, _LONGEST = 4, 1000
_REPEAT = re.compile(r"[*+{]")


def meant_for(module: str, groups: Sequence[Integers]) -> Sequence[Integers]:
    """The groups that may be meant for the module of this name; several where it can't be told."""
    if len(groups) < 2:
        return groups
    if named := [group for group in groups if module in group.targets]:
        return named
    patterns = [
        (target.removeprefix(_PATTERN), group)
        for group in groups
        for target in group.targets
        if target.startswith(_PATTERN)
    ]
    if not all(_is_soon_matched(text) for text, _ in patterns):
        return groups
    if matching := [group for text, group in patterns if re.match(text, module)]:
        return matching
    of_classes = [
        group for group in groups if any(not each.startswith(_PATTERN) for each in group.targets)
    ]
    return of_classes or groups


def _is_soon_matched(pattern: str) -> bool:
    """Whether it is a pattern, and can't take ages: a stranger wrote it."""
    repeats = len(_REPEAT.findall(pattern))
    if len(pattern) > _LONGEST or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
