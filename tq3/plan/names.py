"""What is said of a tensor by its name holds for all names that differ in numbers only.

A model of experts has a hundred thousand names, and a few dozen with its numbers left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from sys import intern
from typing import TypeVar

Result = TypeVar("Result")
_REMEMBERED = 2048
# Longer names are no model's, and are not held in memory.
_LONGEST = 256
# As many as the largest models have.
_NAMES = 1 << 17
_EXPERTS = "experts."
_EXPERT_NUMBER = re.compile(r"((?:^|\.)experts)\.\d+\.")


def whatever_its_numbers(function: Callable[[str], Result]) -> Callable[[str], Result]:
    """The function, which is asked once for all names whose components that are numbers differ.

    Its answer must depend on the number of their digits at most, so that positions hold.
    """
    remembered = lru_cache(_REMEMBERED)(function)

    @wraps(function)
    def answer(name: str) -> Result:
        return remembered(_zeroed(name)) if len(name) <= _LONGEST else function(name)

    return answer


@lru_cache(_NAMES)  # every name is asked about in many ways; answers are few
def _zeroed(name: str) -> str:
    parts = name.split(".")
    return intern(".".join(["0" * len(part) if part.isdecimal() else part for part in parts]))


def without_expert(name: str, instead: str = "") -> str:
    """The name without an expert's number, or with the component `instead` in its place."""
    at = name.find(_EXPERTS) + len(_EXPERTS)
    end = name.find(".", at)
    before = name[: at - len(_EXPERTS)]
    # As nearly all names of experts are, at a quarter of the pattern's time.
    is_plain = before[-1:] in (".", "") and _EXPERTS not in name[end:]
    if at >= len(_EXPERTS) and end > at and is_plain and name[at:end].isdecimal():
        return f"{name[:at]}{instead}{name[end:]}" if instead else name[:at] + name[end + 1 :]
    return _EXPERT_NUMBER.sub(rf"\1.{instead}." if instead else r"\1.", name)
