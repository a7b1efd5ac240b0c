"""Options of commands: made of the keywords of `tq3.format.options`, and those of a screen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from tq3.format.arguments import members, signature_of
from tq3.format.option import FIRST, OUTPUT, PANELS, Option
from tq3.format.options import RunOptions
from tq3.format.recipe import Recipe
from tq3.hub.options import HubOptions
from tq3.storage.selection import Selection

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
# What happens without an option, by its keyword.
_DEFAULTS = {
    field.name: getattr(settings, field.name)
    for settings in (Recipe(), RunOptions(), Selection(), HubOptions())
    for field in fields(settings)
}


def _folder(name: str, text: str) -> Any:
    # typer would call an unreadable folder a wrong request; it is a read that fails.
    return typer.Argument(metavar=name, help=text, readable=False)


def checkpoint(name: str, text: str) -> Any:
    """An argument that names a checkpoint."""
    return typer.Argument(metavar=name, help=f"{text}: a folder, or a repository of the Hub.")


# Texts, not paths: `./name` is a folder and `name` may be a repository.
SourceArg = Annotated[str, checkpoint("SOURCE", "An ordinary checkpoint (safetensors)")]
PathArg = Annotated[str, checkpoint("PATH", "A checkpoint")]
Tq3Arg = Annotated[str, checkpoint("PATH", "A TQ3 checkpoint")]
OutArg = Annotated[Path, _folder("OUT", "Folder to write; new or empty.")]
OutOrNoneArg = Annotated[
    Path | None, _folder("OUT", "Folder to write; new or empty. Not needed for --dry-run.")
]
UnfinishedArg = Annotated[Path, _folder("OUT", "Folder that the parts were written into.")]
Tq3FolderArg = Annotated[Path, _folder("OUT", "Folder of a TQ3 checkpoint.")]

DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan from headers alone; write nothing.")
]
TensorsOpt = Annotated[
    bool, typer.Option("--tensors", help="List every tensor.", rich_help_panel=OUTPUT)
]
JsonOpt = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object, not tables.", rich_help_panel=OUTPUT),
]
QuietOpt = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)
]


class Command(TyperCommand):
    """A command that refuses a switch given both ways, and whose help shows options by panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse `--x --no-x`, of which the last one would win."""
        for parameter in self.get_params(ctx):
            both = (*parameter.opts, *parameter.secondary_opts)
            if parameter.secondary_opts and {*both} <= {*args}:
                ctx.fail(f"{' and '.join(both)} exclude each other")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each panel under its title."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None)
            if row := parameter.get_help_record(ctx):
                panels.setdefault(title or FIRST, []).append(row)
        for title in ("Arguments", *PANELS):
            if title in panels:
                with formatter.section(title):
                    formatter.write_dl(panels[title])


def takes_keywords(function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command, with an option for each keyword of its `**options`.

    It hears of those that are given. A keyword without an `Option` is for Python alone.
    """
    kinds = {name: each.annotation for name, each in signature_of(function).parameters.items()}
    shapes = {name: one for name in kinds for one in getattr(kinds[name], "__metadata__", ())}
    keywords = {
        name: _parameter(name, get_args(kinds[name])[0], option)
        for name, option in shapes.items()
        if isinstance(option, Option)
    }
    numbers = {name for name in keywords if int in map(type, _choices(get_args(kinds[name])[0]))}

    @wraps(function)
    def run(**values: Any) -> None:
        for name, parameter in keywords.items():
            if values[name] in (None, [], parameter.default):
                del values[name]
            elif name in numbers:
                values[name] = int(values[name])
        function(**values)

    def place(name: str) -> tuple[int, int]:
        option = shapes[name]
        panel = PANELS.index(option.panel) if isinstance(option, Option) else 0
        return (ArgumentInfo, Option, OptionInfo).index(type(option)), panel

    own = inspect.signature(function).parameters
    parameters = [
        keywords.get(name) or own[name].replace(annotation=kinds[name], kind=_KEYWORD)
        for name in sorted(shapes, key=place)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameter(name: str, kind: Any, option: Option) -> inspect.Parameter:
    default, flag, text = _DEFAULTS.get(name), option.flag(name), option.text
    parsed: Any
    if kind is bool:
        parsed, default = bool, bool(default)
        flag = f"{flag}/--no-{name}" if default else flag
    elif members(kind) == [bool, type(None)]:
        parsed, flag = bool | None, f"{flag}/--no-{name}"
        text += f" [default: {option.default}]"
    else:
        parsed = _parsed(kind)
        text += " Repeatable." if parsed == list[str] else ""
        shown = option.default or (", ".join(default) if isinstance(default, tuple) else default)
        text += f" [default: {shown}]" if shown else ""
        parsed, default = parsed | None, None
    shape = typer.Option(
        flag, help=text, metavar=option.metavar, rich_help_panel=option.panel, show_default=False
    )
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[parsed, shape])


def _parsed(kind: Any) -> Any:
    """What is read from the command line for a value of this type."""
    if choices := _choices(kind):
        return Literal[tuple(map(str, choices))]
    kinds = members(kind)
    if Sequence in kinds:
        return list[str]
    return str if str in kinds else kinds[0]


def _choices(kind: Any) -> tuple[Any, ...]:
    return next((get_args(one) for one in members(kind) if get_origin(one) is Literal), ())
