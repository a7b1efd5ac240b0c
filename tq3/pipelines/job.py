"""What is to be carried out: a plan, the files around it, and what its values may change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tq3.codec.backend import Backend
from tq3.errors import StorageError
from tq3.events import Notice
from tq3.format import manifest
from tq3.format.checkpoint import Checkpoint
from tq3.format.config import MeasuredError
from tq3.format.files import Source
from tq3.moments.feedbacks import Feedbacks
from tq3.pipelines.findings import Finding
from tq3.pipelines.side_files import in_words, side_files
from tq3.plan.identity import Identity, identify
from tq3.plan.learned import NOTHING_LEARNED, Learned
from tq3.plan.plan import Plan
from tq3.storage.selection import Selection
from tq3.storage.sidecars import Sidecars


class Job(ABC):
    """A compression or a restoration: its plan, and what only that kind of run knows.

    command, options: the request, as it explains why an earlier run can't be continued
    marker_name: of the file that makes the output a checkpoint
    writer: named in the manifest of the output; None for an output without one
    renamed: side files that get another name in the output
    selection: what the user wants to travel or to stay in spite of the policy
    """

    command: str
    marker_name: str
    renamed: Mapping[str, str]
    writer: str | None = None
    plan: Plan

    def __init__(self, files: Source, checkpoint: Checkpoint, selection: Selection) -> None:
        self.files = files
        self.checkpoint = checkpoint
        self.selection = selection
        self._notices = [Notice(text) for text in checkpoint.notices]

    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """The request as JSON."""

    @abstractmethod
    def texts(self) -> dict[str, str]:
        """Files that are written, not copied: name -> text."""

    @abstractmethod
    def marker(self, error: MeasuredError | None) -> tuple[str, str]:
        """Name and text of the file that makes the output a checkpoint; `error`: of its codes."""

    @property
    def learned(self) -> Learned:
        """What of the values the plan heeds."""
        return NOTHING_LEARNED

    def forget(self) -> None:
        """Plan as before any value was known."""
        self.apply(NOTHING_LEARNED)

    @abstractmethod
    def record(self, finding: Finding) -> None:
        """Remember a finding, or raise BadInput if it ends the run."""

    def apply(self, learned: Learned) -> None:
        """Plan with what an earlier run learned from the values."""
        if learned != NOTHING_LEARNED:
            raise AssertionError("only a job that plans again can have learned something")

    def replan(self) -> Learned:
        """Plan again with what was heeded; gives all that was learned so far."""
        raise AssertionError("only a job whose `record` returns plans again")

    def feedbacks(self, backend: Backend) -> Feedbacks | None:
        """What codes are chosen with where the plan has calibrated ones."""
        return None

    def notices(self) -> list[Notice]:
        """Notices that are new since the last call."""
        new, self._notices = self._notices, []
        return new

    def identity(self) -> Identity:
        """The identity by which a later run knows that it may continue this one."""
        return identify(self.command, self.checkpoint, self.plan, self.options())

    def written_names(self) -> tuple[str, ...]:
        """Files of the output that are neither weights nor copied."""
        own = (manifest.FILE_NAME,) if self.writer else ()
        return (*self.texts(), *own, self.marker_name)

    def listed(self) -> Collection[str]:
        """Files that are part of the source whatever they are."""
        return ()

    def sidecars(self) -> Sidecars:
        """The files that are copied along."""
        return side_files(
            self.files,
            self.checkpoint,
            self.plan,
            self.selection,
            written=self.written_names(),
            renamed=self.renamed,
            listed=self.listed(),
        )

    def side_notices(self, sidecars: Sidecars) -> Iterator[Notice]:
        """Notices of what the user should know about these files."""
        return map(Notice, in_words(self.files, sidecars, self.listed()))

    def check_sources(self) -> None:
        """Raise StorageError when a weight file is not the one whose header was read."""
        for file, stamp in self.checkpoint.stamps.items():
            now = self.files.stamp(file)
            if now != stamp:
                raise StorageError(
                    "changed while it was read",
                    file=self.files.place(file),
                    found=now,
                    expected=stamp,
                    fix="let nothing write to the source, and start anew with --overwrite",
                    repeatable=False,
                )
