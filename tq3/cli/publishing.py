"""The commands that bring a checkpoint to the Hub: push, and the card alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tq3
from tq3.cli import options as opt
from tq3.cli.screen import Screen

FolderArg = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder of a TQ3 checkpoint.", readable=False)
]
RepoArg = Annotated[
    str, typer.Argument(metavar="REPO_ID", help="ORG/NAME on the Hub, or NAME for one of yours.")
]
PrivateOpt = Annotated[
    bool, typer.Option("--private", help="Make the repository private, where it is new.")
]
BranchOpt = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="Branch to push to, made where it is missing, or refs/pr/N; default main.",
    ),
]
CreatePrOpt = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead of pushing to main.")
]
PushDryRunOpt = Annotated[
    bool,
    typer.Option("--dry-run", help="Verify, show what would be uploaded; write nothing there."),
]
YesOpt = Annotated[
    bool,
    typer.Option(
        "--yes", help="Do not ask before a gated, private or non-commercial model is made public."
    ),
]
OverwriteCardOpt = Annotated[
    bool,
    typer.Option("--overwrite-card", help="Replace a README.md that somebody wrote or edited."),
]
BaseModelOpt = Annotated[
    str | None,
    typer.Option(metavar="ORG/NAME", help="The source on the Hub; default what compress recorded."),
]
TemplateOpt = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A template for the card, instead of ours.", readable=False),
]


def push(
    path: FolderArg,
    repo_id: RepoArg,
    private: PrivateOpt = False,
    revision: BranchOpt = None,
    create_pr: CreatePrOpt = False,
    dry_run: PushDryRunOpt = False,
    yes: YesOpt = False,
    overwrite_card: OverwriteCardOpt = False,
    base_model: BaseModelOpt = None,
    template: TemplateOpt = None,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
) -> None:
    """Publish OUT on the Hub: verify it, write its model card, upload what is missing, compare."""
    with Screen(json=json, quiet=quiet) as screen:
        run = tq3.push_checkpoint(
            path,
            repo_id,
            may_share=lambda reasons: yes or screen.agrees(reasons),
            private=private,
            revision=revision,
            create_pr=create_pr,
            dry_run=dry_run,
            overwrite_card=overwrite_card,
            base_model=base_model,
            template=template,
            bars=screen.draws,
        )
        screen.publication(screen.follow(run))


def card(
    path: FolderArg,
    repo_id: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Where it will be; default the folder's name."),
    ] = None,
    base_model: BaseModelOpt = None,
    template: TemplateOpt = None,
) -> None:
    """Print the model card that push would write for OUT."""
    with Screen() as screen:
        screen.document(tq3.make_card(path, repo_id, base_model=base_model, template=template))
