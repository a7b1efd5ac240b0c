"""What a case of the corpus is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALL = ("compress", "inspect", "restore")


@dataclass(frozen=True)
class Case:
    """A folder that is wrong in one way.

    files: relative path -> content
    names: the file that the error sentence must begin with, and below `words` of it
    commands: those that must find the fault; the others must succeed, or find another one
    """

    files: Mapping[str, bytes]
    names: str
    words: str
    commands: tuple[str, ...] = ALL
    exit_code: int = 3
