"""The commands that bring a checkpoint to the Hub: push, and the card alone."""

from __future__ import annotations

from typing import Annotated

import typer

import tq3
from tq3.cli import options as opt
from tq3.cli.screen import Screen
from tq3.events import follow
from tq3.format.arguments import Unpack
from tq3.format.push_options import CardKeywords, PushKeywords

RepoArg = Annotated[
    str, typer.Argument(metavar="REPO_ID", help="ORG/NAME on the Hub, or NAME for one of yours.")
]
YesOpt = Annotated[
    bool,
    typer.Option(
        "--yes", help="Do not ask before a gated, private or non-commercial model is made public."
    ),
]


def push(
    path: opt.Tq3FolderArg,
    repo_id: RepoArg,
    yes: YesOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[PushKeywords],
) -> None:
    """Publish OUT on the Hub.

    Verifies it, writes its model card, uploads what is missing, and compares.
    """
    with Screen(json=json, quiet=quiet) as screen:
        run = tq3.push_checkpoint(
            path,
            repo_id,
            may_share=lambda reasons: yes or screen.agrees(reasons),
            bars=screen.draws,
            **options,
        )
        screen.publication(follow(run, screen.watch()))


def card(
    path: opt.Tq3FolderArg,
    repo_id: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Where it will be; default the folder's name."),
    ] = None,
    **options: Unpack[CardKeywords],
) -> None:
    """Print the model card that push would write."""
    with Screen() as screen:
        screen.document(tq3.make_card(path, repo_id, **options))
