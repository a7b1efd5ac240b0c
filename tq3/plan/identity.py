"""What two runs must have in common for the second to continue the first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tq3.format.checkpoint import Checkpoint
from tq3.format.command_line import option_changes
from tq3.format.config import FORMAT_VERSION
from tq3.format.equalization import Factors
from tq3.plan.plan import BLOCK_BYTES, Plan, Task

# Of what is written and of the journal: a run is continued by one that means the same by both.
VERSIONS = f"format {FORMAT_VERSION}, journal 2"


@dataclass(frozen=True, slots=True)
class Identity:
    """A run, as far as its bytes depend on it; JSON values only.

    sources: file -> its stamp, which changes when the file does
    options: what was asked for; they explain a difference, since the plan says nearly all
    factors: digest of those by which weights are scaled; empty for a run without any
    moments: digest of the file of second moments under which codes are chosen; empty without one
    """

    command: str
    sources: Mapping[str, str]
    options: Mapping[str, Any]
    plan: str
    versions: str = VERSIONS
    factors: str = ""
    moments: str = ""

    def to_record(self) -> dict[str, Any]:
        """The identity as JSON."""
        return asdict(self)

    def differences(self, record: Mapping[str, Any], *, stamps: bool = True) -> list[str]:
        """What differs from an earlier run's record, in words; empty if it can be continued.

        stamps: tell those of all files that differ; else that the source is another one, and why
        """
        told = [
            f"{key} {record.get(key)} became {value}"
            for key, value in (("command", self.command), ("versions", self.versions))
            if record.get(key) != value
        ]
        if told:
            return told  # the rest would only confuse
        changed = _stamp_changes(record.get("sources") or {}, self.sources)
        if stamps:
            told += [f"{file} {before} became {now}" for file, before, now in changed]
        else:
            told += [f"another source: {file} differs" for file, *_ in changed][:1]
        if self._is_stricter(record.get("options") or {}):
            told.append("--nonfinite keep became --nonfinite error")
        if record.get("moments", "") != self.moments:
            told.append("other second moments, or none (--calibrate)")
        same = all(record.get(key) == getattr(self, key) for key in ("plan", "factors"))
        if not same and not told:
            told += option_changes(record.get("options") or {}, self.options)
        if not same and not told:
            told.append("the tensors in the source, or what this version of tq3 makes of them")
        return told

    def _is_stricter(self, options: Mapping[str, Any]) -> bool:
        """Whether the earlier run let pass what this one refuses; the plan can't tell."""
        return (options.get("nonfinite"), self.options.get("nonfinite")) == ("keep", "error")


def identify(
    command: str, checkpoint: Checkpoint, plan: Plan, options: Mapping[str, Any]
) -> Identity:
    """The identity of a run that is about to carry out `plan`, before any value is known."""
    return Identity(command, dict(checkpoint.stamps), dict(options), _plan_digest(plan))


def with_factors(identity: Identity, factors: Factors) -> Identity:
    """The identity of a run whose weights are scaled by these factors; the same without any."""
    if not factors:
        return identity
    return replace(identity, factors=factors_digest(factors))


def factors_digest(factors: Factors) -> str:
    """What an identity has of factors: SHA-256 over them and their names."""
    state = hashlib.sha256()
    for name, exponents in factors.items():
        state.update(f"{name!r} {len(exponents)}\n".encode() + exponents)
    return state.hexdigest()


def before_factors(identity: Identity, record: Mapping[str, Any]) -> Identity:
    """The identity of a run that will be equalized, as if by the factors of an earlier run.

    By factors that are those of no run, where the earlier one was not equalized.
    """
    return replace(identity, factors=record.get("factors") or "not yet known")


def _plan_digest(plan: Plan) -> str:
    """SHA-256 over all that decides which bytes are read and written, and in which blocks."""
    state = hashlib.sha256(f"{BLOCK_BYTES}\n".encode())
    for shard in plan.shards:
        state.update(shard.header)
        for task in shard.tasks:
            state.update(_task_text(task).encode())
    return state.hexdigest()


def _task_text(task: Task) -> str:
    sources = [
        (source.file, source.offset, source.info, *([source.pieces] if source.pieces else []))
        for source in task.sources
    ]
    return f"{task.name!r} {task.action} {task.scale} {task.units} {task.layout} {sources}\n"


def _stamp_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield key, old.get(key, "not there"), new.get(key, "not there")
