"""From a TQ3 checkpoint back to an ordinary one, for any engine."""

from __future__ import annotations

from tq3.codec.backend import get_backend
from tq3.errors import BadInput, UsageError
from tq3.format import config as tq_config
from tq3.format.json_text import remove_key
from tq3.format.recipe import DEFAULT_SHARD_SIZE, check_shard_bytes, parse_size
from tq3.pipelines.events import Finished, Planned, Run, StrPath
from tq3.pipelines.findings import Finding
from tq3.pipelines.machine import check_workers
from tq3.pipelines.shards import Tally, make_report, write_shards
from tq3.plan.restoring import DTYPES, plan_restoration, read_tq_config
from tq3.plan.sources import CONFIG, INDEX, Files, read_checkpoint, read_text
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import choose_sidecars
from tq3.storage.writer import TargetFolder


def restore_checkpoint(
    path: StrPath,
    out: StrPath,
    dtype: str = "bfloat16",
    *,
    max_shard_bytes: int = parse_size(DEFAULT_SHARD_SIZE),
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Decode the TQ3 checkpoint `path` into the new folder `out`, telling what happens.

    Names and shapes are the source's; every BF16, F16 and F32 tensor becomes `dtype` ("bfloat16",
    "float16" or "float32"), rounded to nearest even. Other options as in
    `tq3.pipelines.compress.compress_checkpoint`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}", expected=f"one of {', '.join(DTYPES)}")
    check_shard_bytes(max_shard_bytes)
    codec, workers = get_backend(backend), check_workers(workers)
    with (
        LocalFiles(path) as files,
        TargetFolder(out, source=files.folder, overwrite=overwrite) as target,
    ):
        checkpoint = read_checkpoint(files)
        plan = plan_restoration(checkpoint, read_tq_config(files), DTYPES[dtype], max_shard_bytes)
        accounted = (*checkpoint.weight_files, INDEX, CONFIG, tq_config.FILE_NAME)
        sidecars = choose_sidecars(files.tree(), accounted)
        yield Planned(plan, codec.name, workers)
        target.check_room(plan.file_bytes + sum(map(files.size, sidecars.copied)))
        marker = (CONFIG, _ordinary_config(files))
        for name in sidecars.copied:
            target.copy(name, files.folder / name)
        tally = Tally(plan.bytes_in)
        yield from write_shards(
            plan, _refuse, lambda: plan, files, target, tally, backend=codec, workers=workers
        )
        target.publish(plan, texts={}, marker=marker)
        yield Finished(
            make_report(
                plan,
                tally,
                sidecars,
                restored=True,
                backend=codec.name,
                workers=workers,
            )
        )


def _ordinary_config(files: Files) -> str:
    """config.json without the key that compression inserted."""
    if not files.has(CONFIG):
        return "{}\n"
    return remove_key(read_text(files, CONFIG), "quantization_config")


def _refuse(finding: Finding) -> None:
    raise BadInput(
        finding.text,
        file=finding.file,
        tensor=finding.tensor,
        fix="restore with a wider --dtype: float32 holds everything",
    )
