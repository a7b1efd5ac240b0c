"""The options of publishing, as `tq3.format.options` has those of all else."""

from __future__ import annotations

from typing import Annotated, TypedDict

from tq3.format.option import OUTPUT, Option
from tq3.format.options import StrPath


class CardKeywords(TypedDict, total=False):
    """What a model card says beside what the checkpoint does."""

    base_model: Annotated[
        str | None,
        Option("The source on the Hub; default what compress recorded.", OUTPUT, "ORG/NAME"),
    ]
    template: Annotated[
        StrPath | None, Option("A template for the card, instead of ours.", OUTPUT, "FILE")
    ]


class PushKeywords(CardKeywords, total=False):
    """The keywords of `tq3.push`."""

    private: Annotated[bool, Option("Make the repository private, where it is new.")]
    revision: Annotated[
        str | None,
        Option(
            "Branch to push to, made where it is missing, or refs/pr/N; default main.",
            metavar="REVISION",
        ),
    ]
    create_pr: Annotated[bool, Option("Open a pull request instead of pushing to main.")]
    dry_run: Annotated[bool, Option("Verify, show what would be uploaded; write nothing there.")]
    overwrite_card: Annotated[
        bool, Option("Replace a README.md that somebody wrote or edited.", OUTPUT)
    ]
