"""The program as a whole: what typer refuses is told as everything else that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from tq3.cli.screen import Screen
from tq3.errors import UsageError

# The class of all wrong requests: of click, or of typer itself since it does without click.
_Refusal: Any = typer.BadParameter.__bases__[0]


class Program(TyperGroup):
    """The commands, of which a wrong request ends with one sentence of ours and our exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read what stands before the command."""
        with _told():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Read what belongs to the command, and carry it out."""
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except _Refusal as error:
        if type(error).show is not _Refusal.show:
            raise  # no error, but the help of `tq3` alone
        text = error.format_message().replace("Value error, ", "").rstrip(".")
        command = error.ctx.command_path if error.ctx else "tq3"
        with Screen():
            raise UsageError(text[:1].lower() + text[1:], fix=f"see `{command} --help`") from error
