"""What values said of tensors: facts, whatever plan they were met in.

Whether a tensor's values fit depends on the tensor and on what it becomes, not on where it lies
nor on which process looks. So parts of a run can tell each other, and none needs to look twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tq3.pipelines.findings import Finding, Kind
from tq3.plan.plan import Action, Task


class Verdicts:
    """Of each task that was carried out to its end: nothing, or the gravest finding."""

    def __init__(self) -> None:
        self._clean: set[str] = set()
        self._findings: dict[str, Finding] = {}
        self._named: set[str] = set()  # tensors with findings

    @property
    def are_all_clean(self) -> bool:
        """Whether nothing was found."""
        return not self._findings

    def knows(self, task: Task) -> bool:
        """Whether it is known what the task's values say, or they can't say anything."""
        if task.action is Action.COPY and not task.must_be_finite:
            return True
        key = _key(task)
        return key in self._clean or key in self._findings

    def finding(self, task: Task) -> Finding | None:
        """What was found in the task's values."""
        return self._findings.get(_key(task)) if task.name in self._named else None

    def note(self, tasks: Iterable[Task], findings: Iterable[Finding]) -> Verdicts:
        """The tasks were carried out, and this was found. Returns what is new by that."""
        new = Verdicts()
        found: dict[str, Finding] = {}
        for finding in findings:
            known = found.setdefault(finding.tensor, finding)
            if finding.gravity < known.gravity:
                found[finding.tensor] = finding
        for task in tasks:
            if task.name in found:
                new._findings[_key(task)] = found[task.name]
                new._named.add(task.name)
            elif not self.knows(task):
                new._clean.add(_key(task))
        self.take(new.to_record())
        return new

    def take(self, record: Mapping[str, Any]) -> None:
        """Learn what `to_record` says."""
        self._clean.update(record["clean"])
        for key, (file, tensor, kind, text, first) in record["findings"].items():
            self._findings[key] = Finding(file, tensor, Kind(kind), text, first)
            self._named.add(tensor)

    def to_record(self) -> dict[str, Any]:
        """The verdicts as JSON."""
        findings = {
            key: [each.file, each.tensor, int(each.kind), each.text, each.first]
            for key, each in sorted(self._findings.items())
        }
        return {"clean": sorted(self._clean), "findings": findings}


def _key(task: Task) -> str:
    """What a verdict depends on: the tensor, and what it becomes."""
    width = task.layout.bits if task.layout else ""
    dtypes = ",".join(target.dtype for target in task.targets)
    strict = "" if task.must_be_finite else " as it is"
    return f"{task.action.value}{width} {dtypes}{strict} {task.name}"
