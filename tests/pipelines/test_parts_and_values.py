"""What values teach parts is what they teach one run, in whatever order parts meet them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, expert_tensors, random_tensor, spoiled, tiny_checkpoint
from support.pipelines.divided import join, run_parts

import tq3
from tq3.format.recipe import Recipe
from tq3.pipelines.compress import Compression
from tq3.pipelines.findings import Finding, Kind
from tq3.pipelines.learning import learn
from tq3.pipelines.verdicts import Verdicts
from tq3.storage.local import LocalFiles
from tq3.storage.selection import BY_POLICY

VALUES = (float("nan"), 1e30, 1e30, 7e4, 1e-30)


@pytest.fixture(autouse=True)
def small_blocks(set_block_bytes) -> None:
    set_block_bytes(1500)


def random_source(path: Path, rng: random.Random) -> Path:
    """Experts of two layers, in which some values are unusual."""
    tensors = expert_tensors(layers=2, experts=3, dtype=rng.choice(["BF16", "F32"]))
    names = list(tensors)
    for _ in range(rng.randint(0, 5)):
        name = rng.choice(names)
        at = tuple(rng.randrange(size) for size in tensors[name].shape)
        tensors[name] = spoiled(tensors[name], at, rng.choice(VALUES))
    return tiny_checkpoint(path, tensors, shards=2)


def check(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = random_source(path / "in", rng)
    options: dict[str, Any] = {
        "max_shard_size": rng.choice([3000, 6000, 20000]),
        "nonfinite": "keep",
        "workers": 1,
        "norms": rng.choice(["float32", "float16"]),
        "keep_dtype": rng.choice(["float16", "source"]),
    }
    tq3.compress(source, path / "whole", **options)
    of = rng.randint(2, 5)
    run_parts(source, path / "out", of, rng.sample(range(1, of + 1), of), **options)
    join(source, path / "out", of, **options)
    assert contents(path / "out") == contents(path / "whole"), f"seed {seed}"


@pytest.mark.parametrize("seed", [6, 9])
def test_random_findings_in_random_order_come_to_what_one_run_learns(tmp_path, seed):
    check(tmp_path, seed)


@pytest.mark.slow
def test_many_random_findings_come_to_what_one_run_learns(tmp_path):
    first = random.SystemRandom().randrange(10**6)
    for seed in range(first, first + 60):
        check(tmp_path / str(seed), seed)


def job_of(path: Path) -> Compression:
    """A job whose shards hold a few tensors each."""
    source = tiny_checkpoint(path / "in", expert_tensors(layers=1, experts=3))
    recipe = Recipe(max_shard_bytes=2000, nonfinite="keep")
    return Compression(LocalFiles(source), recipe, False, BY_POLICY)


def nan_in(job: Compression, name: str) -> Finding:
    return Finding("model.safetensors", name, Kind.NONFINITE, "nan", 0)


def test_a_finding_waits_while_an_unknown_tensor_before_it_would_vanish(tmp_path):
    """The first expert's matrix would be kept for the last one's sake, and never be encoded."""
    job, verdicts = job_of(tmp_path), Verdicts()
    tasks = {task.name: task for task in job.plan.tasks}
    first, last = (f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in (0, 2))
    verdicts.note([tasks[last]], [nan_in(job, last)])
    assert not learn(job, verdicts)
    assert job.learned.exact == {}
    verdicts.note([task for name, task in tasks.items() if name != last], [])
    assert not learn(job, verdicts)  # what the others become now is not known yet
    assert list(job.learned.exact) == [last]
    verdicts.note(job.plan.tasks, [])
    assert learn(job, verdicts)
    assert list(job.learned.exact) == [last]
    again = Verdicts()
    again.note(tasks.values(), [nan_in(job, first), nan_in(job, last)])
    learn(job, again)
    assert list(job.learned.exact) == [first], "as one run, which then does not encode the last"


def test_of_several_findings_in_a_tensor_the_gravest_and_first_is_told(tmp_path):
    job, verdicts = job_of(tmp_path), Verdicts()
    (task, *_) = job.plan.tasks
    where = (("late", 9, Kind.NONFINITE), ("early", 5, Kind.NONFINITE), ("norm", 0, Kind.NORM))
    new = verdicts.note([task], [Finding("f", task.name, k, text, at) for text, at, k in where])
    found = new.finding(task)
    assert found
    assert found.text == "early"
    copy = Verdicts()
    copy.take(new.to_record())
    assert copy.finding(task) == found
    assert copy.knows(task)
    assert not copy.are_all_clean


def test_what_a_part_found_is_known_after_it_was_stopped(tmp_path):
    tensors = {f"layers.{i}.norm.weight": random_tensor(1500, dtype="F32") for i in range(4)}
    tensors["layers.9.up.weight"] = random_tensor(16, 128)
    tensors["layers.0.norm.weight"] = spoiled(tensors["layers.0.norm.weight"], (0,), 1e30)
    source = tiny_checkpoint(tmp_path / "in", tensors)
    options: dict[str, Any] = {"max_shard_size": 4000, "workers": 1, "keep": "*norm*"}
    tq3.compress(source, tmp_path / "whole", **options)
    run_parts(source, tmp_path / "out", 2, **options)
    join(source, tmp_path / "out", 2, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
