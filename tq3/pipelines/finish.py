"""Joins the parts of a divided compression, and publishes.

What the parts wrote becomes what one run wrote: drafts and a journal in the target's working
folder. An ordinary run goes on from there, and finds nothing left to encode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tq3.codec.backend import get_backend
from tq3.errors import BadInput, UsageError
from tq3.events import Notice, Report, Run
from tq3.format.arguments import Unpack, of_its_types
from tq3.format.command_line import option_changes
from tq3.format.config import recipe_from_record
from tq3.format.equalization import factors_from_record, factors_record
from tq3.format.files import Source
from tq3.format.options import MachineKeywords, RunOptions, StrPath
from tq3.hub.options import HubOptions
from tq3.moments.reading import Moments, moments_or_none
from tq3.pipelines.compress import Compression
from tq3.pipelines.joining import ready_shards, refuse, written_shards
from tq3.pipelines.machine import check_workers
from tq3.pipelines.opening import open_source
from tq3.pipelines.run import changed_tensor, complete
from tq3.pipelines.standing import Standing, find_parts
from tq3.plan.identity import Identity
from tq3.storage.part_factors import factors_of_parts
from tq3.storage.parts import held, parts_in, whole_run
from tq3.storage.selection import Selection
from tq3.storage.target import TargetFolder


@of_its_types
def finish_parts(
    out: StrPath, *, source: StrPath | None = None, **machine: Unpack[MachineKeywords]
) -> Run[Report]:
    """Join the parts in the unfinished target `out` to the checkpoint that one run would write.

    source: where the parts' source lies now, if not where they read it

    Raises BadInput that names each part which is missing, damaged, of another run, or has to run
    again for what others found; then nothing is changed. Other errors as `compress_checkpoint`.
    """
    options, folder = RunOptions(**machine), Path(out)
    begun = _begun(folder)
    asked = begun or _asked(folder, find_parts(folder))
    with (
        _opened(asked["request"], source) as files,
        moments_or_none(asked["request"].get("moments")) as moments,
    ):
        job, identity = _job(files, folder, asked, moments)
        workers = check_workers(options.workers, files.connections)
        codec = get_backend(options.backend)
        with TargetFolder(
            folder,
            identity,
            source=files.folder,
            overwrite=asked["overwrite"],
            joins_parts=True,
        ) as target:
            if begun:
                _go_on(job, folder, target)
            else:
                yield from _join(job, folder, target, asked, workers)
            if changed := changed_tensor(job, target.journal):
                raise _other_source(folder, f"tensor {changed!r} has other values")
            sound = range(0 if begun else len(job.plan.shards))
            return (yield from complete(job, target, codec, workers, sound))


def _join(
    job: Compression, folder: Path, target: TargetFolder, asked: Mapping[str, Any], workers: int
) -> Run[None]:
    """Take the shards of all parts into the target's working folder, or name who is not ready."""
    with held(folder, parts_in(folder)) as busy:
        standing = find_parts(folder, busy)
        yield Notice(f"reading what {standing.of} parts wrote")
        found = yield from ready_shards(job, folder, standing, workers)
        target.journal.restart((), job.learned)
        target.journal.join(asked)
        for each in found:
            target.adopt(each.number, each.draft, each.written.blocks)


def _go_on(job: Compression, folder: Path, target: TargetFolder) -> None:
    """Go on from where an earlier call was stopped, to which all parts were whole.

    What was damaged since then is encoded again.
    """
    job.apply(target.journal.learned)
    if target.journal.is_publishing:
        return
    for each in written_shards(job, folder, find_parts(folder)):
        if not each.fault(job.plan.shards[each.number]):
            target.adopt(each.number, each.draft, each.written.blocks)


def _begun(folder: Path) -> dict[str, Any] | None:
    """From what an earlier call that was stopped had found all parts to be whole; None if none."""
    joined = [record["joined"] for record in whole_run(folder) if "joined" in record]
    return joined[-1] if joined else None


def _asked(folder: Path, standing: Standing) -> dict[str, Any]:
    """What the parts were asked for, as JSON: all that is needed of them beside their shards."""
    if not standing.whole:
        refuse(folder, standing.of, standing.faults)
    first = standing.whole[min(standing.whole)]
    factors = {}
    if first.identity["factors"]:
        plain = replace(Identity(**first.identity), factors="")
        factors = factors_record(factors_of_parts(folder, plain))
    return {
        "identity": dict(first.identity),
        "request": dict(first.request),
        "overwrite": any(each.overwrite for each in standing.whole.values()),
        "factors": factors,
    }


@contextmanager
def _opened(request: Mapping[str, Any], source: StrPath | None) -> Iterator[Source]:
    """The source that the parts read, or what is named in its place."""
    where = request["source"] if source is None else source
    with ExitStack() as stack:
        try:
            opened = open_source(where, HubOptions(revision=request["revision"]))
            files = stack.enter_context(opened)
        except BadInput as error:
            if source is not None:
                raise
            before, fix = "the source of the parts", "name it with --source"
            raise BadInput.retold(error, before, file=str(where), fix=fix) from None
        yield files


def _job(
    files: Source, folder: Path, asked: Mapping[str, Any], moments: Moments | None
) -> tuple[Compression, Identity]:
    """The job that the parts shared, and its identity, which must be theirs."""
    request, recorded = asked["request"], asked["identity"]
    recipe = recipe_from_record(recorded["options"])
    selection = Selection(**{name: tuple(globs) for name, globs in request["selection"].items()})
    job = Compression(files, recipe, request["verbatim_config"], selection, moments)
    if asked["factors"]:
        job.scale(factors_from_record(asked["factors"], str(folder)))
    identity = job.identity()
    if job.writer != request["writer"]:
        raise _other_source(folder, f"{request['writer']} became {job.writer}")
    if json.loads(json.dumps(identity.to_record())) != recorded:
        told = identity.differences(recorded)
        told = told or [*option_changes(recorded["options"], job.options())]
        raise _other_source(folder, "; ".join(told[:3]))
    return job, identity


def _other_source(folder: Path, found: str) -> UsageError:
    return UsageError(
        "what the parts were made from changed since",
        file=folder,
        found=found,
        fix="undo that, or run every part again with --overwrite",
    )
