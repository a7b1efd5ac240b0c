"""From an ordinary checkpoint to a TQ3 checkpoint: plan from headers, carry out, publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tq3.codec.backend import get_backend
from tq3.errors import BadInput
from tq3.format import config as tq_config
from tq3.format.config import quantization_config
from tq3.format.json_text import insert_key, remove_key
from tq3.format.recipe import Recipe
from tq3.pipelines.events import Finished, Notice, Planned, Run, StrPath
from tq3.pipelines.findings import Finding
from tq3.pipelines.machine import check_workers
from tq3.pipelines.shards import Tally, make_report, write_shards
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.plan import Plan
from tq3.plan.sources import CONFIG, INDEX, Checkpoint, read_checkpoint, read_text
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import Sidecars, choose_sidecars
from tq3.storage.writer import TargetFolder
from tq3.version import __version__


def compress_checkpoint(
    source: StrPath,
    out: StrPath,
    recipe: Recipe,
    *,
    workers: int | None = None,
    backend: str | None = None,
    overwrite: bool = False,
    verbatim_config: bool = False,
) -> Run:
    """Compress the checkpoint folder `source` into the new folder `out`, telling what happens.

    workers: threads; None for one a processor, at most 16
    backend: one of `tq3.codec.backend.available_backends()`; None for the fastest, same bytes
    verbatim_config: leave config.json as it is, without the key by which hosts recognise the folder

    Raises UsageError, BadInput or StorageError; then `out` has no checkpoint and no leftovers.
    """
    codec, workers = get_backend(backend), check_workers(workers)
    with (
        LocalFiles(source) as files,
        TargetFolder(out, source=files.folder, overwrite=overwrite) as target,
    ):
        job = _Job(files, read_checkpoint(files), recipe)
        texts = {} if verbatim_config else job.recognisable_config()
        sidecars = job.sidecars(texts)
        yield Planned(job.plan, codec.name, workers)
        target.check_room(job.plan.file_bytes + sum(map(files.size, sidecars.copied)))
        for name in sidecars.copied:
            target.copy(name, files.folder / name)
        tally = Tally(job.plan.bytes_in)
        for progress in write_shards(
            job.plan, job.heed, job.replan, files, target, tally, backend=codec, workers=workers
        ):
            yield from job.new_notices()
            yield progress
        marker = (tq_config.FILE_NAME, job.config().to_json())
        target.publish(job.plan, texts=texts, marker=marker)
        yield Finished(
            make_report(
                job.plan,
                tally,
                sidecars,
                restored=False,
                backend=codec.name,
                workers=workers,
            )
        )


@dataclass
class _Job:
    """The plan of a run, and what the values taught it on the way."""

    files: LocalFiles
    checkpoint: Checkpoint
    recipe: Recipe
    exact: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    plan: Plan = field(init=False)
    notices: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = plan_compression(self.checkpoint, self.recipe)

    def heed(self, finding: Finding) -> None:
        """Remember the gravest finding of each tensor; raise BadInput for one that ends the run."""
        if not finding.overflow and self.recipe.nonfinite == "error":
            raise BadInput(
                f"not a finite weight: {finding.text}",
                file=finding.file,
                tensor=finding.tensor,
                fix="get a sound checkpoint, or --nonfinite keep to store it as it is",
            )
        known = self.findings.setdefault(finding.tensor, finding)
        if finding.gravity < known.gravity:
            self.findings[finding.tensor] = finding

    def replan(self) -> Plan:
        """The plan in which tensors with findings keep their source type."""
        for name in sorted(self.findings.keys() - self.exact.keys()):
            self.exact[name] = f"kept as it is: {self.findings[name].text}"
            self.notices.append(Notice(f"{name} {self.exact[name]}"))
        self.plan = plan_compression(self.checkpoint, self.recipe, self.exact)
        return self.plan

    def new_notices(self) -> Iterator[Notice]:
        """What `replan` learned since this was called last."""
        while self.notices:
            yield self.notices.pop(0)

    def sidecars(self, texts: Iterable[str]) -> Sidecars:
        """What is copied along: everything but the weights and the names of `texts`."""
        accounted = (*self.checkpoint.weight_files, INDEX, tq_config.FILE_NAME, *texts)
        return choose_sidecars(self.files.tree(), accounted)

    def recognisable_config(self) -> dict[str, str]:
        """config.json with the key by which hosts recognise the folder, where there is one."""
        if not self.files.has(CONFIG):
            return {}
        text = read_text(self.files, CONFIG)
        # "quantization_config": null says that there is none; ours takes its place.
        plain = remove_key(text, "quantization_config")
        return {CONFIG: insert_key(plain, "quantization_config", quantization_config(self.recipe))}

    def config(self) -> tq_config.TqConfig:
        """tq_config.json of the plan as it was carried out."""
        model, revision = _identity(self.files.folder)
        return describe_compression(
            self.plan,
            self.recipe,
            self.exact,
            model=model,
            revision=revision,
            writer=f"tq3 {__version__}",
        )


def _identity(folder: Path) -> tuple[str, str | None]:
    """Name and revision of a model: the Hub's for a snapshot in its cache, else the folder's name.

    The cache's layout is models--ORG--NAME/snapshots/REVISION (huggingface_hub's documentation).
    """
    path = folder.resolve()
    if path.parent.name == "snapshots" and path.parts[-3].startswith("models--"):
        return path.parts[-3].removeprefix("models--").replace("--", "/"), path.name
    return path.name, None
