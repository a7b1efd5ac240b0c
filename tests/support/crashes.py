"""Kills runs with SIGKILL at random moments until they are through, and compares the bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support import crash_child
from support.factories import contents, visible

MARKERS = {"compress": "tq_config.json", "restore": "config.json"}


@dataclass(frozen=True)
class Case:
    """A run that is killed.

    make: writes the source into a folder
    older: makes the target that is overwritten, or nothing
    slow: seconds before and after each step
    """

    name: str
    make: Callable[[Path], object]
    options: tuple[str, ...] = ()
    command: str = "compress"
    older: Callable[[Path], object] | None = None
    slow: float = 0.002
    block_bytes: int = 3000


@dataclass
class Figures:
    """What a crash test did. phases: what was under way when a run was killed"""

    kills: int = 0
    completed: int = 0
    blocks_needed: int = 0
    blocks_done: int = 0
    phases: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        redone = self.blocks_done / max(self.blocks_needed, 1) - 1
        phases = ", ".join(f"{phase} {n}" for phase, n in self.phases.most_common())
        return (
            f"{self.kills} kills, {self.completed} runs completed with the right bytes, "
            f"{redone:.0%} of the blocks done again; killed while {phases}"
        )


class Runs:
    """Runs of one case in a folder."""

    def __init__(self, child: subprocess.Popen[str], case: Case, folder: Path) -> None:
        self._child, self._case, self._folder = child, case, folder
        self._source, self._log = folder / "in", folder / "log"
        case.make(self._source)
        assert self.run(folder / "whole", kill=None) == 0, self.said
        self.whole = contents(folder / "whole")
        self.steps = Counter(self._log.read_text().split())

    @property
    def said(self) -> str:
        """The last run's output."""
        return (self._folder / "output").read_text()

    def run(self, out: Path, kill: tuple[str, int, float] | None) -> int:
        """The exit code of a run, negative for a signal."""
        case = self._case
        options = (*case.options, "--overwrite") if case.older else case.options
        request = {
            "arguments": [case.command, str(self._source), str(out), *options],
            "log": str(self._log),
            "output": str(self._folder / "output"),
            "slow": case.slow,
            "block_bytes": case.block_bytes,
            "kill": kill,
        }
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return os.waitstatus_to_exitcode(int(self._child.stdout.readline()))

    def killed_until_complete(self, out: Path, rng: random.Random, figures: Figures) -> None:
        """One target, killed some times."""
        if self._case.older:
            self._case.older(out)
        older = contents(out)
        figures.blocks_needed += self.steps["+encoding"]
        for kill in (*self._moments(rng), None):
            code = self.run(out, kill)
            steps = Counter(self._log.read_text().split())
            figures.blocks_done += steps["+encoding"]
            if code == 0:
                assert contents(out) == self.whole, f"{self._case.name}: other bytes"
                figures.completed += 1
                return
            assert code == -signal.SIGKILL, self.said
            figures.kills += 1
            under_way = [
                phase for phase in crash_child.STEPS if steps[f"+{phase}"] > steps[f"-{phase}"]
            ]
            figures.phases.update(under_way or ["between"])
            self._check_marker(out, older)
            if contents(out) == self.whole:  # it was about to say so
                figures.completed += 1
                return
        raise AssertionError("the last run is not killed")

    def _moments(self, rng: random.Random) -> Iterator[tuple[str, int, float]]:
        """Of any phase as likely as of another, in any order, each in any of its steps."""
        phases = [*crash_child.STEPS] * 2
        for phase in rng.sample(phases, rng.randint(2, 5)):
            count = rng.randint(1, max(self.steps[f"+{phase}"], 1))
            yield f"+{phase}", count, rng.random() * 3 * self._case.slow

    def _check_marker(self, out: Path, older: dict[str, bytes]) -> None:
        """With a marker a folder is a whole checkpoint: the older one or the new one."""
        seen = visible(out)
        if MARKERS[self._case.command] in seen:
            assert older.items() <= seen.items() or self.whole.items() <= seen.items()


@contextmanager
def killing_child() -> Iterator[subprocess.Popen[str]]:
    """The program that runs and kills."""
    command = (sys.executable, crash_child.__file__)
    # One thread in it: it forks.
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            yield child
        finally:
            assert child.stdin
            child.stdin.close()


def crash(cases: list[Case], folder: Path, *, kills: int, seed: int) -> Figures:
    """So many kills over all cases, one case after the other."""
    rng, figures = random.Random(seed), Figures()
    with killing_child() as child:
        for number, case in enumerate(cases, 1):
            runs = Runs(child, case, folder / case.name)
            while figures.kills < kills * number / len(cases):
                out = folder / case.name / "out"
                runs.killed_until_complete(out, rng, figures)
                shutil.rmtree(out)
            shutil.rmtree(folder / case.name)
    return figures
