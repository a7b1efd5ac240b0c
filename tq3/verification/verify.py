"""Whether a TQ3 checkpoint is sound: headers, norms, checksums, weights beside the source's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from tq3.codec.backend import Backend, get_backend
from tq3.dequantization.orientation import turned_like, with_host_views
from tq3.dequantization.source import open_original
from tq3.equalization.scaled_source import SCALED, equalized
from tq3.errors import UsageError
from tq3.events import Checking, Notice, Progress, Run
from tq3.format import manifest as tq_manifest
from tq3.format.arguments import Unpack, of_its_types
from tq3.format.config import FILE_NAME
from tq3.format.files import Source
from tq3.format.options import MachineKeywords, StrPath
from tq3.hub.options import HubOptions
from tq3.parallel import in_parallel
from tq3.pipelines.machine import check_workers, peak_memory_bytes
from tq3.pipelines.opening import FOLDER, open_source
from tq3.plan.plan import Block, Task
from tq3.plan.precision import main_dtype
from tq3.verification.checks import Verification
from tq3.verification.checksums import Checked, Reader, Stretch, plan_stretches
from tq3.verification.comparing import Compared, Comparer
from tq3.verification.judging import Judge
from tq3.verification.pairing import pair_up
from tq3.verification.structure import Structure, examine


@of_its_types
def verify_checkpoint(
    path: StrPath,
    *,
    source: StrPath | None = None,
    structure: bool = False,
    hub: HubOptions = FOLDER,
    source_hub: HubOptions = FOLDER,
    **machine: Unpack[MachineKeywords],
) -> Run[Verification]:
    """Look at the TQ3 checkpoint `path` to its end, telling what happens; write nothing.

    source: the checkpoint that it was made from, to compare every tensor with
    structure: look at listing, JSON files and headers alone; no weight is read
    hub, source_hub: about `path` and `source` where they are repositories of the Hub
    Other options as in `tq3.pipelines.compress.compress_checkpoint`. What is wrong with the
    checkpoint is in the result; UsageError, BadInput and StorageError are raised only for
    folders that aren't there or can't be listed, and for a source that can't be read.
    """
    if structure and source is not None:
        raise UsageError("--source compares weights, --structure reads none", fix="choose one")
    codec = get_backend(machine.get("backend"))
    with ExitStack() as stack:
        files = stack.enter_context(open_source(path, hub))
        originals = None
        if source is not None:
            originals = stack.enter_context(open_source(source, source_hub))
        connections = max(each.connections for each in (files, originals or files))
        workers = check_workers(machine.get("workers"), connections)
        found = examine(files)
        job = _Job(files, originals, codec, workers, found, structure_only=structure)
        yield job.checking()
        yield from job.look_at_bytes()
        yield from job.compare()
        yield from map(Notice, job.notices)
        return job.verification()


class _Job:
    """One verification: what is to be read, and what was found so far."""

    def __init__(
        self,
        files: Source,
        originals: Source | None,
        codec: Backend,
        workers: int,
        structure: Structure,
        *,
        structure_only: bool,
    ) -> None:
        self._started = time.perf_counter()
        self._files = files
        self._originals = originals
        self._codec = codec
        self._workers = workers
        self._structure = structure
        self._faults = structure.faults
        self._structure_only = structure_only
        # Planning them looks at the sizes that the manifest tells, too.
        stretches = plan_stretches(files, structure)
        self._stretches = [] if structure_only else stretches
        self._judge = self._make_judge()
        self._n_total = sum(each.n_bytes for each in self._stretches)
        self._n_total += sum(task.bytes_in for task in self._judge.tasks)
        self._n_bytes = self._n_weights = 0
        self.notices = list(_notices(structure, originals))

    def checking(self) -> Checking:
        """The event that says what will be read."""
        return Checking(
            n_tensors=len(self._structure.kept) + len(self._structure.layouts),
            bytes_total=self._n_total,
            checksums=self._has_checksums,
            source=self._originals is not None,
            backend=self._codec.name,
            workers=self._workers,
        )

    @property
    def _has_checksums(self) -> bool:
        return self._structure.manifest is not None and not self._structure_only

    def look_at_bytes(self) -> Iterator[Progress]:
        """Read all that has a checksum, and the norms."""

        def make_work() -> Callable[[Stretch], Checked]:
            return Reader(self._files).check

        for checked in in_parallel(self._stretches, make_work, self._workers, self._cancel):
            for fault in checked.faults:
                self._faults.add(fault)
            self._n_bytes += checked.stretch.n_bytes
            yield self._progress(checked.stretch.file)

    def compare(self) -> Iterator[Progress]:
        """Set every tensor beside the source's, suspects a second time."""
        yield from self._compare(self._judge.tasks, self._judge.add, again=False)
        suspects = self._judge.suspects()
        self._n_total += sum(task.bytes_in for task in suspects)
        yield from self._compare(suspects, self._judge.add_again, again=True)
        for fault in self._judge.faults():
            self._faults.add(fault)
        self.notices += self._judge.notices()

    def verification(self) -> Verification:
        """The result, with all that was found."""
        structure = self._structure
        return Verification(
            path=self._files.label,
            source=self._originals.label if self._originals else None,
            n_files=len({*structure.weight_files, *(each.file for each in self._stretches)}),
            n_compressed=len(structure.layouts),
            n_kept=len(structure.kept),
            checksums=self._has_checksums,
            structure_only=self._structure_only,
            bytes_read=self._n_bytes,
            faults=tuple(self._faults),
            notices=tuple(self.notices),
            comparisons=tuple(self._judge.comparisons()),
            seconds=time.perf_counter() - self._started,
            peak_memory_bytes=peak_memory_bytes(),
            backend=self._codec.name,
            workers=self._workers,
        )

    def _make_judge(self) -> Judge:
        """A judge of all that can be compared; what can't is a fault."""
        if self._originals is None:
            return Judge((), None)
        self._originals, original = open_original(self._originals)
        layouts = self._structure.layouts.values()
        self._originals, original = turned_like(layouts, self._originals, original)
        if self._structure.config:
            factors = self._structure.config.factors
            self._originals = equalized(self._originals, original, factors)
        self._originals = with_host_views(self._originals, original)
        if not self._structure.weight_files:
            return Judge((), None)  # said already, and once is enough
        tasks, faults = pair_up(self._structure, original)
        for fault in faults:
            self._faults.add(fault)
        return Judge(
            tasks,
            main_dtype(tensor.nominal for tensor in original.tensors),
            is_saved_anew=not self._files.has(FILE_NAME),
        )

    def _compare(
        self, tasks: Iterable[Task], add: Callable[[Compared], None], *, again: bool
    ) -> Iterator[Progress]:
        originals = self._originals
        if originals is None:
            return

        def make_work() -> Callable[[Block], Compared]:
            comparer = Comparer(self._files, originals, self._codec, again=again)
            return comparer.compare

        blocks = (block for task in tasks for block in task.blocks())
        for compared in in_parallel(blocks, make_work, self._workers, self._cancel):
            if compared.fault:
                self._faults.add(compared.fault)
            add(compared)
            self._n_bytes += compared.block.bytes_in
            self._n_weights += compared.block.weights
            yield self._progress(compared.block.task.name)

    def _cancel(self) -> None:
        for files in (self._files, self._originals or self._files):
            files.cancel()

    def _progress(self, at: str) -> Progress:
        return Progress(
            bytes_done=self._n_bytes,
            bytes_before=0,
            bytes_total=self._n_total,
            weights_done=self._n_weights,
            seconds=time.perf_counter() - self._started,
            tensor=at,
        )


def _notices(structure: Structure, originals: Source | None) -> Iterator[str]:
    if originals and structure.config and structure.config.factors:
        yield SCALED
    if structure.weight_files and not structure.needs_manifest:
        yield (
            f"no {tq_manifest.FILE_NAME}, so no checksums: "
            "headers, shapes and norms were checked, codes and other files were not"
        )
