"""What a run has done so far, and its figures when it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import fsum, prod

from tq3.events import Progress, Rates, Report
from tq3.format.config import MeasuredError
from tq3.format.files import Source
from tq3.format.parts import Part
from tq3.pipelines.machine import check_workers, peak_memory_bytes
from tq3.plan.plan import Block, Plan
from tq3.storage.journal import DoneBlock, Journal


class Tally:
    """Counts blocks, those of an earlier run included.

    numbers: of the shards that are written; all of them, where no others are named
    bytes_before: source bytes whose work an earlier run has done
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        files: Source,
        workers: int,
        numbers: range | None = None,
    ) -> None:
        self._files = files
        self._processors = min(workers, check_workers(None))
        self._cpu_seconds = 0.0
        self._bytes_worked = 0
        self._received_before = files.n_received or 0
        self._started = time.perf_counter()
        self._count(plan, journal, numbers)
        self.bytes_before, self._weights_before = self.bytes_done, self._weights_done

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def bytes_received(self) -> int | None:
        """Bytes that came over a network, planning included; None where there is none."""
        return self._files.n_received

    @property
    def share_before(self) -> float:
        """The share of the work that an earlier run has done: 0 to 1."""
        return self.bytes_before / max(self.bytes_total, 1)

    def recount(self, plan: Plan, journal: Journal, numbers: range | None = None) -> None:
        """A shard is written anew: what was done of it, by an earlier run too, does not count."""
        self._count(plan, journal, numbers)
        self.bytes_before = min(self.bytes_before, self.bytes_done)
        self._weights_before = min(self._weights_before, self._weights_done)

    def _count(self, plan: Plan, journal: Journal, numbers: range | None) -> None:
        """Count what the journal knows of, and nothing else."""
        self.bytes_done = self.bytes_total = 0
        self._weights_done = 0
        self.errors: dict[str, float] = {}
        for number in range(len(plan.shards)) if numbers is None else numbers:
            shard, done = plan.shards[number], journal.blocks(number)
            self.bytes_total += shard.bytes_in
            for block in shard.blocks() if done else ():
                if block.key in done:
                    self.add(block, done[block.key])

    def add(self, block: Block, done: DoneBlock) -> None:
        """Count one block."""
        self.bytes_done += block.bytes_in
        self._weights_done += block.weights
        if done.error:
            squared_error, squared_norm = done.error
            self.errors[done.task] = squared_error / squared_norm if squared_norm else 0.0

    def work(self, block: Block, cpu_seconds: float) -> None:
        """Count what this run needed the processors for."""
        self._bytes_worked += block.bytes_in
        self._cpu_seconds += cpu_seconds

    @property
    def rates(self) -> Rates | None:
        """Speeds of network and encoder; None for a local source and one in the Hub cache."""
        received = (self._files.n_received or 0) - self._received_before
        if not received:
            return None
        busy = max(self._cpu_seconds / self._processors, 1e-9)
        return Rates(received / max(self.seconds, 1e-9), self._bytes_worked / busy)

    def measured_error(self) -> MeasuredError | None:
        """Over all tensors, whatever their order; None where nothing was compressed."""
        if not self.errors:
            return None
        worst = max(sorted(self.errors), key=lambda name: self.errors[name])
        return MeasuredError(
            fsum(self.errors.values()) / len(self.errors), self.errors[worst], worst
        )

    def progress(self, tensor: str) -> Progress:
        """The state as an event."""
        return Progress(
            bytes_done=self.bytes_done,
            bytes_before=self.bytes_before,
            bytes_total=self.bytes_total,
            weights_done=self._weights_done - self._weights_before,
            seconds=self.seconds,
            tensor=tensor,
            rates=self.rates,
        )


def make_report(
    plan: Plan,
    tally: Tally,
    left_out: Mapping[str, str],
    *,
    restored: bool,
    backend: str,
    workers: int,
    part: Part | None = None,
) -> Report:
    """The figures of a plan that was carried out; `plan`: of a part, what it has of it."""
    coded = [task for task in plan.tasks if task.layout]
    n_coded = sum(prod(task.layout.shape) for task in coded if task.layout)
    n_kept = sum(task.sources[0].info.n_elements for task in plan.tasks if not task.layout)
    error = tally.measured_error()
    return Report(
        restored=restored,
        source_bytes=plan.bytes_in,
        output_bytes=plan.bytes_out,
        bits_per_weight=plan.bytes_out * 8 / max(n_coded + n_kept, 1),
        compressed_bits_per_weight=sum(task.bytes_out for task in coded) * 8 / n_coded
        if coded
        else None,
        n_compressed=len(coded),
        n_kept=len(plan.tasks) - len(coded),
        mean_error=error.mean if error else None,
        worst_error=error.worst if error else None,
        worst_tensor=error.worst_tensor if error else None,
        share_before=tally.share_before,
        seconds=tally.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        backend=backend,
        workers=workers,
        left_out=dict(left_out),
        bytes_received=tally.bytes_received,
        part=part,
    )
