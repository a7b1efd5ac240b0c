"""Which files of a checkpoint folder a push publishes: those that were verified, and no others."""

from __future__ import annotations

from collections.abc import Collection

from tq3.format import manifest, quality
from tq3.format.checkpoint import read_checkpoint
from tq3.format.files import read_text
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import CARD, choose_sidecars

_UNKNOWN = f"not in {manifest.FILE_NAME}, so that nobody verified it"


def choose_files(files: LocalFiles) -> tuple[list[str], dict[str, str]]:
    """The names to publish, but the card's; and what stays here -> why.

    Of a folder without a manifest, as other writers leave it, what compress would take along.
    """
    checkpoint, listed = read_checkpoint(files), _listed(files)
    weights = checkpoint.files
    sidecars = choose_sidecars(files.tree(), weights, listed=listed, copies=checkpoint.copies)
    names = {*weights, *sidecars.copied} - {CARD}
    unknown = names - {*listed, manifest.FILE_NAME, quality.FILE_NAME} if listed else set()
    return sorted(names - unknown), sidecars.left_out | dict.fromkeys(sorted(unknown), _UNKNOWN)


def _listed(files: LocalFiles) -> Collection[str]:
    if not files.has(manifest.FILE_NAME):
        return ()
    return manifest.parse_manifest(read_text(files, manifest.FILE_NAME)).files
