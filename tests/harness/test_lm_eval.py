"""lm_eval on a TQ3 checkpoint, by the command of docs/evaluation.md, with tasks that lie here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.evaluation.questions import ask, log_likelihoods, make_folders

HARNESS = "tq3.evaluation.harness"
PLAIN = "lm_eval"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("harness"))


def samples(folders: Path, program: str, model: str) -> dict[str, list[Any]]:
    command = (sys.executable, "-m", program, "--model", "hf", "--device", "cpu")
    return ask(folders, model, command)


def test_answers_of_the_packed_checkpoint_are_those_of_the_restored_one(folders):
    """Without our part of Transformers the layers would be random."""
    packed = samples(folders, HARNESS, "out")
    restored = samples(folders, PLAIN, "restored")
    assert log_likelihoods(packed) == pytest.approx(log_likelihoods(restored), rel=1e-3)
    for ours, theirs in zip(packed["generating"], restored["generating"], strict=True):
        assert ours["resps"] == theirs["resps"]


def test_the_source_answers_otherwise(folders):
    """The comparison above can tell models apart."""
    restored = log_likelihoods(samples(folders, PLAIN, "restored"))
    source = log_likelihoods(samples(folders, PLAIN, "source"))
    assert source != pytest.approx(restored, rel=1e-2)
