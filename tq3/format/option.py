"""What one option of a command is, and where the command's help lists it."""

from __future__ import annotations

from dataclasses import dataclass

# Where a command's help lists an option: first what most people need, under "Options".
FIRST = "Options"
SMALL = "What to make small"
EXACT = "What to keep exact"
RUN = "How to run"
OUTPUT = "Output"
PANELS = (FIRST, SMALL, EXACT, RUN, OUTPUT)


@dataclass(frozen=True, slots=True)
class Option:
    """How a command shows a keyword.

    text: what it does; panel: one of PANELS
    metavar: what stands for its value
    name: of the option, where it is not the keyword's
    default: what happens without it: in words where no field of its name says so, or True
    """

    text: str
    panel: str = FIRST
    metavar: str | None = None
    name: str | None = None
    default: str | bool | None = None

    def flag(self, keyword: str) -> str:
        """The option of this keyword: `--lm-head` of `lm_head`."""
        return self.name or f"--{keyword.replace('_', '-')}"
