"""The factors of equalized columns that the parts of a run share: estimated once, read by all.

An estimate adds up floats, in an order and with functions that may differ between processors. So
no part relies on its own: whichever is first writes the file, and every part reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tq3.errors import BadInput, UsageError
from tq3.format.equalization import Factors, factors_from_record, factors_record
from tq3.plan.identity import Identity, factors_digest
from tq3.storage.drafts import ALL_ANEW, WORK_FOLDER
from tq3.storage.failures import writing
from tq3.storage.locking import open_locked
from tq3.storage.part_manifest import read_whole, write_whole
from tq3.storage.parts import parts_folder

FILE_NAME = "factors"
_LOCK = "factors.lock"


def read_factors(folder: Path, identity: Identity, *, overwrite: bool = False) -> Factors | None:
    """The factors of the run that `folder` is the target of; None where there are none yet.

    identity: the run's, as it is without factors
    overwrite: those of another run go, and a damaged file

    Raises UsageError for those of another run, BadInput for a damaged file.
    """
    path = parts_folder(folder) / FILE_NAME
    try:
        record = read_whole(path)
        if record is None:
            return None
        differences = identity.differences(record["identity"], stamps=False)
    except BadInput as error:
        if not overwrite:
            fix = "run any part with --overwrite: it measures the columns anew"
            raise BadInput(error.message, file=path, fix=fix) from None
        differences = [error.message]
    if differences and overwrite:
        with writing(path):
            path.unlink(missing_ok=True)
        return None
    if differences:
        raise UsageError(
            "parts of another run are in the target",
            file=folder,
            found="; ".join(differences[:3]),
            fix=f"undo that and continue, or {ALL_ANEW}",
        )
    return factors_from_record(record["factors"], str(path))


def shared_digest(folder: Path) -> str | None:
    """What an identity has of the factors that are there; None for none, or a damaged file."""
    path = parts_folder(folder) / FILE_NAME
    with suppress(BadInput):
        record = read_whole(path)
        return record and factors_digest(factors_from_record(record["factors"], str(path)))
    return None


def write_factors(folder: Path, identity: Identity, factors: Factors) -> None:
    """Put the factors there for all parts, or leave those of another one. Raises StorageError."""
    record = {"identity": identity.to_record(), "factors": factors_record(factors)}
    path = parts_folder(folder) / FILE_NAME
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_whole(path, record, first=True)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no other part estimates factors: then none begins within the block.

    Where the file system has no locks every part is told so.
    """
    path = folder / WORK_FOLDER / _LOCK
    descriptor = None
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(UsageError):
            descriptor, _ = open_locked(path, shared=True)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def factors_of_parts(folder: Path, identity: Identity) -> Factors:
    """The factors that all parts read. Raises BadInput where they are gone."""
    found = read_factors(folder, identity)
    if found is None:
        raise BadInput(
            "the factors of the parts are gone",
            file=parts_folder(folder) / FILE_NAME,
            fix="run any part again: it measures the columns anew",
        )
    return found
