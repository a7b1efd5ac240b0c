"""What a pipeline tells while it runs: a caller shows it, or drops it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from tq3.format.parts import Part
from tq3.plan.plan import Plan

Result = TypeVar("Result")

# Processors that are so busy would not gain much by a faster network.
_NEARLY = 0.8


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan is made and the work begins."""

    plan: Plan
    backend: str
    workers: int


@dataclass(frozen=True, slots=True)
class Checking:
    """It is known what a verification will read, and the reading begins."""

    n_tensors: int
    bytes_total: int
    checksums: bool
    source: bool
    backend: str
    workers: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Source bytes a second: what the network brought, and what the processors could encode."""

    network: float
    encoder: float

    @property
    def binding(self) -> str:
        """The slower side, which decides how fast the run is: network or encoder."""
        return "encoder" if self.network > _NEARLY * self.encoder else "network"


@dataclass(frozen=True, slots=True)
class Progress:
    """Work done so far, in bytes read; the tensor or file at hand.

    bytes_before: of those done, what an earlier run did
    weights_done: encoded or decoded by this run
    rates: where the source comes over a network
    """

    bytes_done: int
    bytes_before: int
    bytes_total: int
    weights_done: int
    seconds: float
    tensor: str
    rates: Rates | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know and that does not end the run."""

    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a finished run.

    restored: False for a compression, True for the way back
    bytes: of all tensors, in the source and in the output
    bits_per_weight: over all parameters, kept ones included; compressed_bits_per_weight: without
    them
    mean_error, worst_error: relative squared error ||w - decode(encode(w))||^2 / ||w||^2, from the
    first groups of each compressed tensor; None where nothing was compressed
    share_before: of the work, what an earlier run had done: 0 to 1; seconds: of this run
    bytes_received: over a network by this run; None for a source on this machine
    part: number and count, where the figures are those of a part's shards
    """

    restored: bool
    source_bytes: int
    output_bytes: int
    bits_per_weight: float
    compressed_bits_per_weight: float | None
    n_compressed: int
    n_kept: int
    mean_error: float | None
    worst_error: float | None
    worst_tensor: str | None
    share_before: float
    seconds: float
    peak_memory_bytes: int
    backend: str
    workers: int
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_received: int | None = None
    part: Part | None = None

    @property
    def ratio(self) -> float:
        """How many times smaller the output is."""
        return self.source_bytes / self.output_bytes if self.output_bytes else 1.0

    @property
    def gb_per_second(self) -> float:
        """Bytes of the ordinary checkpoint, read or written by this run, a second: 10**9 bytes."""
        n_bytes = max(self.source_bytes, self.output_bytes) * (1 - self.share_before)
        return n_bytes / self.seconds / 1e9


@dataclass(frozen=True, slots=True)
class Uploading:
    """These files are sent to the Hub now, as far as it does not have their bytes.

    bytes_done: of the files before them; bytes_total: of all that the repository lacks
    """

    files: tuple[str, ...]
    n_bytes: int
    bytes_done: int
    bytes_total: int


Event = Planned | Checking | Progress | Notice | Uploading
OnEvent = Callable[[Event], None]

# A pipeline under way: it yields events and returns its result. Closing it ends the work; the same
# run can then be continued.
Run = Generator[Event, None, Result]


def follow(run: Run[Result], on_event: OnEvent | None = None) -> Result:
    """Carry a run out to its end, tell `on_event` what happens, and return the run's result."""
    with closing(run):
        while True:
            try:
                event = next(run)
            except StopIteration as end:
                result: Result = end.value
                return result
            if on_event:
                on_event(event)
