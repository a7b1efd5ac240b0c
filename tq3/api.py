"""The Python interface: functions named as the commands, with their options, returning figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from tq3.format.recipe import (
    DEFAULT_SENSITIVE_PATTERNS,
    DEFAULT_SHARD_SIZE,
    Recipe,
    parse_size,
)
from tq3.pipelines.checks import Verification
from tq3.pipelines.compress import compress_checkpoint
from tq3.pipelines.describe import Description, describe, describe_plan
from tq3.pipelines.events import Event, Finished, Report, Run, StrPath, Verified
from tq3.pipelines.machine import check_workers
from tq3.pipelines.restore import restore_checkpoint
from tq3.pipelines.verify import verify_checkpoint
from tq3.storage.local import LocalFiles

OnEvent = Callable[[Event], None]


def compress(
    source: StrPath,
    out: StrPath,
    *,
    bits: int = 3,
    group_size: int = 128,
    keep: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    keep_dtype: str = "float16",
    sensitive_bits: int | None = None,
    sensitive_patterns: str | Sequence[str] = DEFAULT_SENSITIVE_PATTERNS,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    nonfinite: str = "error",
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    verbatim_config: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Compress the checkpoint folder `source` into the new folder `out`.

    The first options are those of `tq3.Recipe` (max_shard_size: bytes or a text such as "5GiB"),
    the others those of `tq3.pipelines.compress.compress_checkpoint`; `on_event` hears of the
    progress. Raises UsageError, BadInput or StorageError; then `out` has no checkpoint, and the
    same call goes on from what was done.
    """
    recipe = Recipe(
        bits=bits,
        group_size=group_size,
        keep=_globs(keep),
        only=_globs(only),
        keep_dtype=keep_dtype,
        max_shard_bytes=parse_size(max_shard_size),
        sensitive_bits=sensitive_bits,
        sensitive_patterns=_globs(sensitive_patterns),
        nonfinite=nonfinite,
    )
    events = compress_checkpoint(
        source,
        out,
        recipe,
        workers=workers,
        backend=backend,
        overwrite=overwrite,
        resume=resume,
        verbatim_config=verbatim_config,
    )
    return _run(events, on_event)


def restore(
    path: StrPath,
    out: StrPath,
    *,
    dtype: str = "bfloat16",
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    on_event: OnEvent | None = None,
) -> Report:
    """Decode the TQ3 checkpoint `path` into an ordinary checkpoint in the new folder `out`.

    dtype: of every floating-point tensor, "bfloat16", "float16" or "float32". Errors as in
    `compress`.
    """
    events = restore_checkpoint(
        path,
        out,
        dtype,
        max_shard_bytes=parse_size(max_shard_size),
        workers=workers,
        backend=backend,
        overwrite=overwrite,
        resume=resume,
    )
    return _run(events, on_event)


def verify(
    path: StrPath,
    *,
    source: StrPath | None = None,
    workers: int | None = None,
    backend: str | None = None,
    on_event: OnEvent | None = None,
) -> Verification:
    """Whether the TQ3 checkpoint `path` is sound; with `source` its weights beside the original's.

    What is wrong is in the answer's `faults`. Raises UsageError, BadInput or StorageError for
    folders that aren't there or can't be listed, and for a source that can't be read.
    """
    run = verify_checkpoint(path, source=source, workers=workers, backend=backend)
    last = _last_event(run, on_event)
    assert isinstance(last, Verified), "a verification ends with Verified or raises"
    return last.verification


def inspect(path: StrPath, recipe: Recipe | None = None) -> Description:
    """What the TQ3 checkpoint `path` holds, or what compress would make of any other one.

    Reads headers only. Raises BadInput or StorageError.
    """
    with LocalFiles(path) as files:
        return describe(files, recipe or Recipe(), check_workers(None))


def preview(
    source: StrPath, recipe: Recipe | None = None, workers: int | None = None
) -> Description:
    """What compress would write: every tensor's fate and reason, shards, bytes, peak memory.

    Reads headers only. Raises BadInput or StorageError, also for what compress would refuse.
    """
    with LocalFiles(source) as files:
        return describe_plan(files, recipe or Recipe(), check_workers(workers))


def save_tq3_checkpoint(
    model_id: StrPath,
    output_dir: StrPath,
    bits: int = 3,
    group_size: int = 128,
    sensitive_bits: int | None = None,
    max_shard_bytes: int = parse_size(DEFAULT_SHARD_SIZE),
) -> Report:
    """`compress` under the name and with the options that users of the existing writer know.

    sensitive_bits: width of `o_proj` and `down_proj`, where it differs from `bits`
    """
    return compress(
        model_id,
        output_dir,
        bits=bits,
        group_size=group_size,
        sensitive_bits=sensitive_bits,
        max_shard_size=max_shard_bytes,
    )


def _globs(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _run(run: Run, on_event: OnEvent | None) -> Report:
    last = _last_event(run, on_event)
    assert isinstance(last, Finished), "a pipeline ends with Finished or raises"
    return last.report


def _last_event(run: Run, on_event: OnEvent | None) -> Event | None:
    last: Event | None = None
    with closing(run):
        for last in run:
            if on_event:
                on_event(last)
    return last
