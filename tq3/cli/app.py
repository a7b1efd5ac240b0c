"""The `tq3` command: each subcommand parses, calls, shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import tq3
from tq3.cli import options as opt
from tq3.cli.calibrating import calibrate
from tq3.cli.evaluating import evaluate
from tq3.cli.program import Program
from tq3.cli.publishing import card, push
from tq3.cli.screen import Screen
from tq3.errors import UsageError
from tq3.format.arguments import Unpack
from tq3.format.options import (
    CompressKeywords,
    FinishKeywords,
    InspectKeywords,
    RestoreKeywords,
    VerifyKeywords,
)
from tq3.storage.parts import is_divided

app = typer.Typer(
    name="tq3",
    cls=Program,
    help="Compress Hugging Face checkpoints to 2 to 4 bits a weight, on a CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    # huggingface_hub warns of every attempt, with addresses that are signed; our error tells of the
    # last one.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if version:
        typer.echo(f"tq3 {tq3.__version__}")
        raise typer.Exit


def compress(
    source: opt.SourceArg,
    out: opt.OutOrNoneArg = None,
    dry_run: opt.DryRunOpt = False,
    tensors: opt.TensorsOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[CompressKeywords],
) -> None:
    """Compress SOURCE into the new folder OUT."""
    with Screen(json=json, quiet=quiet) as screen:
        if tensors and not dry_run:
            raise UsageError(
                "--tensors lists a plan",
                fix="add --dry-run, or use tq3 inspect OUT --tensors later",
            )
        if dry_run:
            screen.description(tq3.preview(source, **options), tensors=tensors)
            return
        if out is None:
            raise UsageError(
                "missing argument OUT", fix="name the folder to write, or add --dry-run"
            )
        options["show_download"] = screen.draws
        watch = screen.watch(out, options.get("part"))
        screen.report(tq3.compress(source, out, on_event=watch, **options), out)


def finish(
    out: opt.UnfinishedArg,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[FinishKeywords],
) -> None:
    """Join the parts in OUT that `tq3 compress --part` wrote.

    Names the parts that are missing, damaged, of another run, or to be run again; else writes what
    one run would have written.
    """
    with Screen(json=json, quiet=quiet) as screen:
        screen.report(tq3.finish(out, on_event=screen.watch(out), **options), out)


def inspect(
    path: opt.PathArg,
    tensors: opt.TensorsOpt = False,
    json: opt.JsonOpt = False,
    **options: Unpack[InspectKeywords],
) -> None:
    """Show a TQ3 checkpoint, what would become of another one, or which parts of one stand."""
    with Screen(json=json) as screen:
        if is_divided(Path(path)) and not options:
            screen.standing(tq3.parts(path))
            return
        screen.description(tq3.inspect(path, **options), tensors=tensors)


def restore(
    path: opt.Tq3Arg,
    out: opt.OutArg,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[RestoreKeywords],
) -> None:
    """Decode PATH into an ordinary checkpoint OUT.

    Headers and norms are checked, codes are not: run `tq3 verify PATH` first.
    """
    with Screen(json=json, quiet=quiet) as screen:
        options["show_download"] = screen.draws
        screen.report(tq3.restore(path, out, on_event=screen.watch(out), **options), out)


def verify(
    path: opt.Tq3Arg,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[VerifyKeywords],
) -> None:
    """Check PATH, and with --source its weights.

    Headers, norms and checksums are read to the last byte.
    """
    with Screen(json=json, quiet=quiet) as screen:
        options["show_download"] = screen.draws
        screen.verification(tq3.verify(path, on_event=screen.watch(), **options))


COMMANDS: dict[str, Callable[..., None]] = {
    "compress": compress,
    "finish": finish,
    "inspect": inspect,
    "restore": restore,
    "verify": verify,
    "push": push,
    "card": card,
    "eval": evaluate,
    "calibrate": calibrate,
}
for name, function in COMMANDS.items():
    app.command(name, cls=opt.Command)(opt.takes_keywords(function))
