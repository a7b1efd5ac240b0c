"""The Python interface: functions named as the commands, with their options, returning figures.

Keywords are those of the dictionaries in `tq3.format.options`, which say what each one does. An
error is a UsageError, BadInput, StorageError or NetworkError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tq3.codec.backend import get_backend
from tq3.errors import UsageError
from tq3.events import OnEvent, Report, Run, follow
from tq3.format.arguments import Unpack, of_its_types, only
from tq3.format.command_line import flag
from tq3.format.options import (
    CompressKeywords,
    FinishKeywords,
    HubKeywords,
    InspectKeywords,
    MachineKeywords,
    RecipeKeywords,
    RestoreKeywords,
    RunKeywords,
    StrPath,
    VerifyKeywords,
)
from tq3.format.parts import make_part
from tq3.format.push_options import PushKeywords
from tq3.format.recipe import GroupSize
from tq3.format.request import make_recipe
from tq3.format.sizes import DEFAULT_SHARD_SIZE, parse_size
from tq3.format.widths import Bits
from tq3.hub.options import HubOptions
from tq3.moments.facts import CALIBRATION_TOKENS
from tq3.moments.reading import is_moments_file, moments_or_none
from tq3.pipelines.compress import compress_checkpoint
from tq3.pipelines.describe import describe, describe_plan
from tq3.pipelines.description import Description
from tq3.pipelines.finish import finish_parts
from tq3.pipelines.machine import check_workers
from tq3.pipelines.opening import open_source, options_of_both
from tq3.pipelines.restore import restore_checkpoint
from tq3.pipelines.standing import Standing, look_at_parts
from tq3.publication.result import Publication
from tq3.storage.selection import Selection
from tq3.verification.checks import Verification
from tq3.verification.verify import verify_checkpoint
from tq3.wings import wing


@of_its_types
def compress(
    source: StrPath,
    out: StrPath,
    *,
    on_event: OnEvent | None = None,
    **options: Unpack[CompressKeywords],
) -> Report:
    """Compress the checkpoint `source` into the new folder `out`.

    source: a folder, or as a text the id of a repository on the Hub
    recipe: a `Recipe`, which then has all the options of one, or the name or file of widths by role
    on_event: hears of the progress
    part: "3/16" or (3, 16) writes the shards of that part, and `finish` joins them
    options: see `tq3.format.options.CompressKeywords`

    After an error `out` has no checkpoint, and the same call goes on from what was done.
    """
    recipe = make_recipe(**only(RecipeKeywords, options))
    moments, tokens = _asked_moments(options)
    how: dict[str, Any] = {
        "verbatim_config": options.get("verbatim_config", False),
        "selection": Selection.of(options.get("also"), options.get("without")),
        "hub": HubOptions(**only(HubKeywords, options)),
        "part": options.get("part"),
        **only(RunKeywords, options),
    }
    if moments is None or is_moments_file(moments):
        return follow(compress_checkpoint(source, out, recipe, moments=moments, **how), on_event)
    if how.pop("part") is not None:
        raise UsageError(
            "--part, and a text to calibrate with: each part would have moments of its own",
            found=f"--calibrate {moments}",
            fix="write them once with `tq3 calibrate`, and give that file to every part",
        )
    calibrated = wing("calibration", "compressing", "--calibrate").compress_calibrated
    run: Run[Report] = calibrated(source, out, recipe, moments, tokens, **how)
    return follow(run, on_event)


def _asked_moments(options: CompressKeywords) -> tuple[StrPath | None, int]:
    moments, tokens = options.get("calibrate"), options.get("calibration_tokens")
    if tokens is not None and (moments is None or is_moments_file(moments)):
        raise UsageError(
            "--calibration-tokens says how much of a text goes through the model",
            found=f"--calibrate {moments}" if moments else "no --calibrate",
            fix="leave it out, or give a text, or `random`, with --calibrate",
        )
    return moments, CALIBRATION_TOKENS if tokens is None else tokens


@of_its_types
def finish(
    out: StrPath, *, on_event: OnEvent | None = None, **options: Unpack[FinishKeywords]
) -> Report:
    """Join the parts in the unfinished target `out`: the bytes that one run would have written.

    options: see `tq3.format.options.FinishKeywords`

    Raises BadInput that names the parts which are missing, damaged, of another run, or to be run
    again; then nothing is changed.
    """
    return follow(finish_parts(out, **options), on_event)


@of_its_types
def parts(out: StrPath) -> Standing:
    """Which parts stand in the unfinished target `out`. Raises UsageError where there are none."""
    return look_at_parts(Path(out))


@of_its_types
def preview(source: StrPath, **options: Unpack[CompressKeywords]) -> Description:
    """What compress would write: every tensor's fate and reason, shards, bytes, peak memory.

    options: those of `compress`; `workers` counts for the peak memory, `backend` is looked up, and
    `resume`, `overwrite` and `download` are not looked at, nor a text to calibrate with

    Raises what `compress` would for the source, the recipe and the side files. Reads headers only.
    """
    get_backend(options.get("backend"))
    selection = Selection.of(options.get("also"), options.get("without"))
    recipe = make_recipe(**only(RecipeKeywords, options))
    asked, _ = _asked_moments(options)
    moments = asked if asked is not None and is_moments_file(asked) else None
    hub = HubOptions(revision=options.get("revision"))
    with (
        open_source(source, hub) as files,
        moments_or_none(moments) as known,
    ):
        return describe_plan(
            files,
            recipe,
            check_workers(options.get("workers"), files.connections),
            selection,
            verbatim_config=options.get("verbatim_config", False),
            moments=known,
            part=make_part(options.get("part")),
        )


@of_its_types
def inspect(path: StrPath, **options: Unpack[InspectKeywords]) -> Description:
    """What the TQ3 checkpoint `path` holds, or what compress would make of any other one.

    path: a folder, or as a text the id of a repository on the Hub
    options: see `tq3.format.options.InspectKeywords`

    Reads headers only. Raises UsageError for options of a recipe where nothing is to be compressed.
    """
    asked = only(RecipeKeywords, options)
    recipe = make_recipe(**asked)
    with open_source(path, HubOptions(revision=options.get("revision"))) as files:
        found = describe(files, recipe, check_workers(None, files.connections))
    given = [flag(name, value) for name, value in asked.items() if value not in (None, [], ())]
    if given and not found.planned:
        raise UsageError(
            "a TQ3 checkpoint: nothing is left to choose",
            found=", ".join(given),
            fix="leave the options out, or name the checkpoint that it was made from",
        )
    return found


@of_its_types
def restore(
    path: StrPath,
    out: StrPath,
    *,
    on_event: OnEvent | None = None,
    **options: Unpack[RestoreKeywords],
) -> Report:
    """Decode the TQ3 checkpoint `path` into an ordinary checkpoint in the new folder `out`.

    options: see `tq3.format.options.RestoreKeywords`

    Repositories, events and errors as in `compress`.
    """
    shard_size = options.get("max_shard_size")
    run = restore_checkpoint(
        path,
        out,
        options.get("dtype", "bfloat16"),
        max_shard_bytes=parse_size(DEFAULT_SHARD_SIZE if shard_size is None else shard_size),
        selection=Selection.of(options.get("also"), options.get("without")),
        hub=HubOptions(**only(HubKeywords, options)),
        **only(RunKeywords, options),
    )
    return follow(run, on_event)


@of_its_types
def verify(
    path: StrPath, *, on_event: OnEvent | None = None, **options: Unpack[VerifyKeywords]
) -> Verification:
    """Whether the TQ3 checkpoint `path` is sound; with `source` its weights beside the original's.

    path: a folder, or as a text the id of a repository on the Hub
    options: see `tq3.format.options.VerifyKeywords`

    What is wrong is in the answer's `faults`; errors are raised for what isn't there or can't be
    listed, and for a source that can't be read.
    """
    hub, source_hub = options_of_both(path, options.get("source"), options)
    run = verify_checkpoint(
        path,
        source=options.get("source"),
        structure=options.get("structure", False),
        hub=hub,
        source_hub=source_hub,
        **only(MachineKeywords, options),
    )
    return follow(run, on_event)


@of_its_types
def push(
    path: StrPath,
    repo_id: str,
    *,
    yes: bool = False,
    on_event: OnEvent | None = None,
    **options: Unpack[PushKeywords],
) -> Publication:
    """Publish the TQ3 checkpoint `path` as the model `repo_id` on the Hub.

    yes: make a copy public although its source is gated, private or not for commercial use
    options: see `tq3.format.push_options.PushKeywords`
    """
    from tq3.publication.push import push_checkpoint  # noqa: PLC0415  others need no Hub

    return follow(push_checkpoint(path, repo_id, may_share=lambda _: yes, **options), on_event)


@of_its_types
def save_tq3_checkpoint(
    model_id: StrPath,
    output_dir: StrPath,
    bits: Bits = 3,
    group_size: GroupSize = 128,
    sensitive_bits: Bits | None = None,
    max_shard_bytes: float = parse_size(DEFAULT_SHARD_SIZE),
) -> Report:
    """`compress` under the name and with the options that users of the existing writer know.

    sensitive_bits: width of `o_proj` and `down_proj`, where it differs from `bits`

    The scale of each group is searched for and columns are equalized, as `compress` does it by
    default: files of the same size, for the same readers, with a smaller error.
    `compress(..., scale="norm", equalize=False)` codes as the existing writer does.
    """
    return compress(
        model_id,
        output_dir,
        bits=bits,
        group_size=group_size,
        sensitive_bits=sensitive_bits,
        max_shard_size=max_shard_bytes,
    )
