"""From a TQ3 checkpoint back to an ordinary one, for any engine."""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType

from tq3.errors import BadInput
from tq3.events import Notice, Report, Run
from tq3.format import manifest
from tq3.format.arguments import Unpack, of_its_types
from tq3.format.checkpoint import read_checkpoint
from tq3.format.config import MeasuredError
from tq3.format.files import CONFIG, Source, read_text
from tq3.format.options import FloatDtype, RunKeywords, RunOptions, StrPath
from tq3.format.recognition import unmark
from tq3.format.sizes import DEFAULT_SHARD_SIZE, check_shard_bytes, parse_size
from tq3.hub.options import HubOptions
from tq3.pipelines.findings import Finding, Kind
from tq3.pipelines.job import Job
from tq3.pipelines.opening import FOLDER, open_source
from tq3.pipelines.run import run_job
from tq3.plan.restoring import DTYPES, plan_restoration, read_tq_config
from tq3.storage.selection import BY_POLICY, Selection
from tq3.storage.sidecars import CARD, SOURCE_CARD


@of_its_types
def restore_checkpoint(
    path: StrPath,
    out: StrPath,
    dtype: FloatDtype = "bfloat16",
    *,
    max_shard_bytes: int = parse_size(DEFAULT_SHARD_SIZE),
    selection: Selection = BY_POLICY,
    hub: HubOptions = FOLDER,
    **run: Unpack[RunKeywords],
) -> Run[Report]:
    """Decode the TQ3 checkpoint `path` into the new folder `out`, telling what happens.

    Names and shapes are the source's, and so are values but for the error of the codes; those of an
    equalized checkpoint stay equalized, and compute the same. Every BF16, F16 and F32 tensor
    becomes `dtype`, rounded to nearest even; but what compress would keep in F32, such as a
    router's correction bias, stays F32. Other options as in
    `tq3.pipelines.compress.compress_checkpoint`.
    """
    options = RunOptions(**run)
    check_shard_bytes(max_shard_bytes)
    with open_source(path, hub) as files:
        job = _Restoration(files, dtype, max_shard_bytes, selection)
        if job.is_equalized:
            yield Notice(
                "columns are equalized: the model computes what its source does, with other weights"
            )
        if dtype == "bfloat16" and job.source_dtype == "float16":
            yield Notice(
                "the source was float16, of which bfloat16 loses 3 bits: --dtype float16 gives "
                "kept tensors back exactly"
            )
        return (yield from run_job(job, out, options))


class _Restoration(Job):
    """The plan of a restoration; values can't change it."""

    command = "restore"
    marker_name = CONFIG
    renamed = MappingProxyType({SOURCE_CARD: CARD})

    def __init__(
        self, files: Source, dtype: str, max_shard_bytes: int, selection: Selection
    ) -> None:
        super().__init__(files, read_checkpoint(files), selection)
        config = read_tq_config(files, self.checkpoint.config)
        self.is_equalized = bool(config.factors)
        self.source_dtype = config.source_dtype
        self.plan = plan_restoration(self.checkpoint, config, DTYPES[dtype], max_shard_bytes)
        self._options = {"dtype": dtype, "max_shard_bytes": max_shard_bytes}

    def options(self) -> dict[str, object]:
        """Dtype and size of the shards."""
        return self._options

    def listed(self) -> Collection[str]:
        """The files that the manifest names: compress took them along, by itself or asked to."""
        if not self.files.has(manifest.FILE_NAME):
            return ()
        try:
            return manifest.parse_manifest(read_text(self.files, manifest.FILE_NAME)).files
        except BadInput as error:
            raise BadInput.retold(
                error,
                "can't say what travels along",
                file=manifest.FILE_NAME,
                fix="fetch it again, or remove it: then names decide, as for compress",
            ) from None

    def texts(self) -> dict[str, str]:
        """No files beside the marker."""
        return {}

    def marker(self, error: MeasuredError | None) -> tuple[str, str]:
        """config.json without the keys that compression inserted."""
        if not self.files.has(CONFIG):
            return CONFIG, "{}\n"
        return CONFIG, unmark(read_text(self.files, CONFIG))

    def record(self, finding: Finding) -> None:
        """Any finding ends the run."""
        raise BadInput(
            finding.text,
            file=finding.file,
            tensor=finding.tensor,
            fix="restore with a wider --dtype: float32 holds everything"
            if finding.kind in (Kind.OVERFLOW, Kind.PRECISION)
            else "get the checkpoint again: these weights can't be known",
        )
