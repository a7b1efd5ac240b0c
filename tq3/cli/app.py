"""The `tq3` command: each subcommand parses, calls, shows."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

import tq3
from tq3.cli import options as opt
from tq3.cli.evaluating import evaluate
from tq3.cli.publishing import card, push
from tq3.cli.screen import Screen
from tq3.errors import UsageError
from tq3.format.recipe import DEFAULT_SHARD_SIZE, parse_size
from tq3.format.request import make_recipe
from tq3.storage.selection import Selection

app = typer.Typer(
    name="tq3",
    help="Turn a Hugging Face checkpoint into a 3-bit one, on a CPU.",
    no_args_is_help=True,
    add_completion=False,
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


@app.command()
@opt.takes(opt.RecipeOptions)
def compress(
    source: opt.SourceArg,
    asked: dict[str, Any],
    out: opt.OutOrNoneArg = None,
    workers: opt.WorkersOpt = None,
    backend: opt.BackendOpt = None,
    overwrite: opt.OverwriteOpt = False,
    resume: opt.ResumeOpt = True,
    verbatim_config: opt.VerbatimOpt = False,
    also: opt.AlsoOpt = None,
    without: opt.WithoutOpt = None,
    revision: opt.RevisionOpt = None,
    download: opt.DownloadOpt = False,
    dry_run: opt.DryRunOpt = False,
    tensors: opt.TensorsOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
) -> None:
    """Compress SOURCE into the new folder OUT."""
    with Screen(json=json, quiet=quiet) as screen:
        if tensors and not dry_run:
            raise UsageError(
                "--tensors lists a plan",
                fix="add --dry-run, or use tq3 inspect OUT --tensors later",
            )
        recipe, selection = make_recipe(**asked), Selection.of(also, without)
        if dry_run:
            _check_backend(backend)
            plan = tq3.preview(source, recipe, workers, revision, selection)
            screen.description(plan, tensors=tensors)
            return
        if out is None:
            raise UsageError(
                "missing argument OUT", fix="name the folder to write, or add --dry-run"
            )
        run = tq3.compress_checkpoint(
            source,
            out,
            recipe,
            workers=workers,
            backend=backend,
            overwrite=overwrite,
            resume=resume,
            verbatim_config=verbatim_config,
            selection=selection,
            hub=screen.hub_options(revision, download),
        )
        screen.report(screen.follow(run, out), out)


def _check_backend(name: str | None) -> None:
    from tq3.codec.backend import get_backend  # noqa: PLC0415  --help needs no numpy

    get_backend(name)


@app.command()
@opt.takes(opt.WidthOptions)
def inspect(
    path: opt.PathArg,
    asked: dict[str, Any],
    revision: opt.RevisionOpt = None,
    tensors: opt.TensorsOpt = False,
    json: opt.JsonOpt = False,
) -> None:
    """Show a TQ3 checkpoint, or what would become of another one."""
    with Screen(json=json) as screen:
        found = tq3.inspect(path, make_recipe(**asked), revision)
        given = [name for name, value in asked.items() if value not in (None, False)]
        if given and not found.planned:
            raise UsageError(
                "a TQ3 checkpoint: nothing is left to choose",
                found=", ".join(f"--{name.replace('_', '-')}" for name in given),
                fix="leave the options out, or name the checkpoint that it was made from",
            )
        screen.description(found, tensors=tensors)


@app.command()
def restore(
    path: opt.Tq3Arg,
    out: opt.OutArg,
    dtype: opt.DtypeOpt = "bfloat16",
    max_shard_size: opt.ShardOpt = DEFAULT_SHARD_SIZE,
    workers: opt.WorkersOpt = None,
    backend: opt.BackendOpt = None,
    overwrite: opt.OverwriteOpt = False,
    resume: opt.ResumeOpt = True,
    also: opt.AlsoOpt = None,
    without: opt.WithoutOpt = None,
    revision: opt.RevisionOpt = None,
    download: opt.DownloadOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
) -> None:
    """Decode PATH into an ordinary checkpoint OUT.

    Headers and norms are checked, codes are not: run `tq3 verify PATH` first.
    """
    with Screen(json=json, quiet=quiet) as screen:
        run = tq3.restore_checkpoint(
            path,
            out,
            dtype,
            max_shard_bytes=parse_size(max_shard_size),
            workers=workers,
            backend=backend,
            overwrite=overwrite,
            resume=resume,
            selection=Selection.of(also, without),
            hub=screen.hub_options(revision, download),
        )
        screen.report(screen.follow(run, out), out)


@app.command()
def verify(
    path: opt.Tq3Arg,
    source: opt.OriginalOpt = None,
    structure: opt.StructureOpt = False,
    revision: opt.RevisionOpt = None,
    download: opt.DownloadOpt = False,
    source_revision: opt.SourceRevisionOpt = None,
    workers: opt.WorkersOpt = None,
    backend: opt.BackendOpt = None,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
) -> None:
    """Check PATH: headers, norms, checksums; with --source its weights."""
    with Screen(json=json, quiet=quiet) as screen:
        run = tq3.verify_checkpoint(
            path,
            source=source,
            structure=structure,
            workers=workers,
            backend=backend,
            hub=screen.hub_options(revision, download),
            source_hub=screen.hub_options(source_revision, False),
        )
        screen.verification(screen.follow(run))


app.command()(push)
app.command()(card)
app.command("eval")(evaluate)
