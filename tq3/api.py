"""The Python interface: functions named as the commands, with their options, returning figures."""

from __future__ import annotations

from collections.abc import Sequence

from tq3.events import OnEvent, Report, StrPath, follow
from tq3.format.arguments import of_its_types
from tq3.format.recipe import DEFAULT_SHARD_SIZE, Recipe, parse_size
from tq3.format.request import make_recipe
from tq3.hub.options import HubOptions
from tq3.pipelines.compress import compress_checkpoint
from tq3.pipelines.describe import describe, describe_plan
from tq3.pipelines.description import Description
from tq3.pipelines.machine import check_workers
from tq3.pipelines.opening import open_source
from tq3.pipelines.restore import restore_checkpoint
from tq3.publication.result import Publication
from tq3.storage.selection import BY_POLICY, Selection
from tq3.verification.checks import Verification
from tq3.verification.verify import verify_checkpoint


@of_its_types
def compress(
    source: StrPath,
    out: StrPath,
    *,
    bits: int | None = None,
    recipe: StrPath | None = None,
    target_size: float | str | None = None,
    target_bpw: float | None = None,
    lm_head: int | None = None,
    embeddings: int | None = None,
    group_size: int = 128,
    keep: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    keep_dtype: str | None = None,
    sensitive_bits: int | None = None,
    sensitive_patterns: str | Sequence[str] | None = None,
    max_shard_size: float | str = DEFAULT_SHARD_SIZE,
    nonfinite: str = "error",
    scale: str = "search",
    norms: str | None = None,
    equalize: bool = False,
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    verbatim_config: bool = False,
    also: str | Sequence[str] | None = None,
    without: str | Sequence[str] | None = None,
    revision: str | None = None,
    download: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Compress the checkpoint `source` into the new folder `out`.

    source: a folder, or as a text the id of a repository on the Hub
    also, without: see `tq3.storage.sidecars.Selection`
    revision, download: see `tq3.hub.options.HubOptions`; for repositories only

    The first options are those of `tq3.format.request.make_recipe` and of `tq3.Recipe`, the others
    those of `tq3.pipelines.compress.compress_checkpoint`; `on_event` hears of the progress. Raises
    UsageError, BadInput, StorageError or NetworkError; then `out` has no checkpoint, and the same
    call goes on from what was done.
    """
    asked = make_recipe(
        bits=bits,
        recipe=recipe,
        target_size=target_size,
        target_bpw=target_bpw,
        lm_head=lm_head,
        embeddings=embeddings,
        group_size=group_size,
        keep=keep,
        only=only,
        keep_dtype=keep_dtype,
        max_shard_size=max_shard_size,
        sensitive_bits=sensitive_bits,
        sensitive_patterns=sensitive_patterns,
        nonfinite=nonfinite,
        scale=scale,
        norms=norms,
        equalize=equalize,
    )
    run = compress_checkpoint(
        source,
        out,
        asked,
        workers=workers,
        backend=backend,
        overwrite=overwrite,
        resume=resume,
        verbatim_config=verbatim_config,
        selection=Selection.of(also, without),
        hub=HubOptions(revision=revision, download=download),
    )
    return follow(run, on_event)


@of_its_types
def restore(
    path: StrPath,
    out: StrPath,
    *,
    dtype: str = "bfloat16",
    max_shard_size: float | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    also: str | Sequence[str] | None = None,
    without: str | Sequence[str] | None = None,
    revision: str | None = None,
    download: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Decode the TQ3 checkpoint `path` into an ordinary checkpoint in the new folder `out`.

    dtype: of floating-point tensors, "bfloat16", "float16" or "float32"; what is kept in F32 and
    small stays so. Repositories, errors, `also` and `without` as in `compress`.
    """
    run = restore_checkpoint(
        path,
        out,
        dtype,
        max_shard_bytes=parse_size(max_shard_size),
        workers=workers,
        backend=backend,
        overwrite=overwrite,
        resume=resume,
        selection=Selection.of(also, without),
        hub=HubOptions(revision=revision, download=download),
    )
    return follow(run, on_event)


@of_its_types
def verify(
    path: StrPath,
    *,
    source: StrPath | None = None,
    structure: bool = False,
    workers: int | None = None,
    backend: str | None = None,
    revision: str | None = None,
    download: bool = False,
    source_revision: str | None = None,
    on_event: OnEvent | None = None,
) -> Verification:
    """Whether the TQ3 checkpoint `path` is sound; with `source` its weights beside the original's.

    path, source: folders, or as texts the ids of repositories on the Hub
    structure: look at listing, JSON files and headers alone

    What is wrong is in the answer's `faults`. Raises UsageError, BadInput, StorageError or
    NetworkError for what isn't there or can't be listed, and for a source that can't be read.
    """
    run = verify_checkpoint(
        path,
        source=source,
        structure=structure,
        workers=workers,
        backend=backend,
        hub=HubOptions(revision=revision, download=download),
        source_hub=HubOptions(revision=source_revision),
    )
    return follow(run, on_event)


@of_its_types
def push(
    path: StrPath,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    overwrite_card: bool = False,
    base_model: str | None = None,
    template: StrPath | None = None,
    on_event: OnEvent | None = None,
) -> Publication:
    """Publish the TQ3 checkpoint `path` as the model `repo_id` on the Hub.

    yes: make a copy public although its source is gated, private or not for commercial use

    Other options and errors are those of `tq3.publication.push.push_checkpoint`.
    """
    from tq3.publication.push import push_checkpoint  # noqa: PLC0415  others need no Hub

    run = push_checkpoint(
        path,
        repo_id,
        may_share=lambda _: yes,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        overwrite_card=overwrite_card,
        base_model=base_model,
        template=template,
    )
    return follow(run, on_event)


@of_its_types
def inspect(
    path: StrPath, recipe: Recipe | None = None, revision: str | None = None
) -> Description:
    """What the TQ3 checkpoint `path` holds, or what compress would make of any other one.

    path: a folder, or as a text the id of a repository on the Hub, at `revision`

    Reads headers only. Raises BadInput, StorageError or NetworkError.
    """
    with open_source(path, HubOptions(revision=revision)) as files:
        return describe(files, recipe or Recipe(), check_workers(None, files.connections))


@of_its_types
def preview(
    source: StrPath,
    recipe: Recipe | None = None,
    workers: int | None = None,
    revision: str | None = None,
    selection: Selection = BY_POLICY,
) -> Description:
    """What compress would write: every tensor's fate and reason, shards, bytes, peak memory.

    Reads headers only. Raises BadInput, StorageError or NetworkError, also for what compress would
    refuse.
    """
    with open_source(source, HubOptions(revision=revision)) as files:
        workers = check_workers(workers, files.connections)
        return describe_plan(files, recipe or Recipe(), workers, selection)


@of_its_types
def save_tq3_checkpoint(
    model_id: StrPath,
    output_dir: StrPath,
    bits: int = 3,
    group_size: int = 128,
    sensitive_bits: int | None = None,
    max_shard_bytes: float = parse_size(DEFAULT_SHARD_SIZE),
) -> Report:
    """`compress` under the name and with the options that users of the existing writer know.

    sensitive_bits: width of `o_proj` and `down_proj`, where it differs from `bits`

    The scale of each group is searched for, as `compress` does it by default: files of the same
    size, for the same readers, with a smaller error. `compress(..., scale="norm")` codes as the
    existing writer does.
    """
    return compress(
        model_id,
        output_dir,
        bits=bits,
        group_size=group_size,
        sensitive_bits=sensitive_bits,
        max_shard_size=max_shard_bytes,
    )
