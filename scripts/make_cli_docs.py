"""Writes docs/cli.md from the program itself; --check fails where the file is not up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tq3 import errors
from tq3.cli.stops import INTERRUPTED
from tq3.cli.streams import NOBODY_READS

_NOTE = r"""Data goes to stdout, words and progress to stderr. Codes and option names are stable.

Stdout that can't be written, on a full disk say, ends a command with 4; stderr that can't be,
or a stream that is closed, changes nothing. A character that the terminal's encoding lacks is
shown as `\xf6` or `\u91cd`; JSON is ASCII, and a card that goes into a file or a pipe is UTF-8
in every locale.
"""
TARGET = Path(__file__).parent.parent / "docs" / "cli.md"


def main() -> None:
    text = f"{commands()}\n{exit_codes()}"
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif text != TARGET.read_text():
        sys.exit(f"{TARGET} is not what the program says; run `make docs`")


def commands() -> str:
    """Every command with its arguments and options, by typer's own generator."""
    command = ["typer", "tq3.cli.app", "utils", "docs", "--name", "tq3", "--title", "Commands"]
    plain = {**os.environ, "TERM": "dumb"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    return result.stdout.rstrip() + "\n"


def exit_codes() -> str:
    """The table of exit codes, from the error classes."""
    rows = [(0, "Done.")]
    rows += [(kind.exit_code, str(kind.__doc__)) for kind in errors.Tq3Error.__subclasses__()]
    rows += [(INTERRUPTED, "Ctrl-C, SIGTERM or a closed terminal; the same command then goes on.")]
    rows += [(NOBODY_READS, "The reader of stdout went away, as `head` does.")]
    lines = "\n".join(f"| {code} | {meaning} |" for code, meaning in rows)
    return f"## Exit codes\n\n| code | meaning |\n| --- | --- |\n{lines}\n\n{_NOTE}"


if __name__ == "__main__":
    main()
