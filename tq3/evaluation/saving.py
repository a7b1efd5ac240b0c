"""Figures of an evaluation written into the folder of the checkpoint, for its card."""

from __future__ import annotations

import os
from pathlib import Path

from tq3.errors import UsageError
from tq3.evaluation.result import Evaluation
from tq3.format.options import StrPath
from tq3.format.quality import FILE_NAME, fingerprint, quality_text
from tq3.storage.local import LocalFiles


def check_folder(path: StrPath) -> str | None:
    """The `fingerprint` of the checkpoint in a folder of this machine, before hours of work.

    Raises UsageError where nothing can be written.
    """
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise UsageError(
            "--save writes into the folder that is measured",
            file=path,
            expected="a folder that exists and may be written to",
            fix="fetch the repository first, or leave --save out",
        )
    with LocalFiles(path) as files:
        return fingerprint(files)


def save(evaluation: Evaluation, folder: StrPath, checkpoint: str | None) -> None:
    """Write tq3_eval.json, whole or not at all. OSError as it comes.

    checkpoint: what `check_folder` said before the weights were read
    """
    draft = Path(folder) / f"{FILE_NAME}.part"
    draft.write_text(quality_text(evaluation.to_dict(), checkpoint))
    draft.replace(Path(folder) / FILE_NAME)
