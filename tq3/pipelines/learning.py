"""What a whole run would have learned from the values that its parts have seen.

A run on one machine goes from shard to shard; what it finds in one changes the plan, and it goes on
in that. What it has learned in the end can depend on the order: an expert that is kept for
another's sake is never encoded. So findings of parts are not just added up. The run is played
again, shard by shard, with verdicts in place of values.
"""

from __future__ import annotations

from tq3.pipelines.job import Job
from tq3.pipelines.verdicts import Verdicts
from tq3.plan.plan import Plan, Task


def learn(job: Job, verdicts: Verdicts) -> bool:
    """Have the job plan with what a whole run would have learned; whether that is certain.

    What is not known yet is taken for sound. It will be known when the shards of this plan are
    written, so the same question then has a better answer: a finding is heeded only while no task
    before it that is still unknown would vanish from the plan by that, and with it the answer.
    """
    job.forget()
    while not verdicts.are_all_clean:
        number, unknown = _next_finding(job.plan, verdicts)
        if number is None:
            return not unknown
        before, learned = job.plan, job.learned
        for task in before.shards[number].tasks:
            if finding := verdicts.finding(task):
                job.record(finding)
        job.replan()
        assert job.plan != before, "what is heeded is not found again"
        if not set(unknown).issubset(map(_identity, job.plan.tasks)):
            job.forget()
            job.apply(learned)
            return False
    return all(map(verdicts.knows, job.plan.tasks))


def _next_finding(plan: Plan, verdicts: Verdicts) -> tuple[int | None, list[object]]:
    """The first shard in which something was found, and the unknown tasks up to its end."""
    unknown: list[object] = []
    for number, shard in enumerate(plan.shards):
        unknown += [_identity(task) for task in shard.tasks if not verdicts.knows(task)]
        if any(map(verdicts.finding, shard.tasks)):
            return number, unknown
    return None, unknown


def _identity(task: Task) -> object:
    return task.name, task.action, task.targets, task.must_be_finite
