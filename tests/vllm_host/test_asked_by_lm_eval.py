"""lm_eval asks a TQ3 checkpoint in vLLM, by the command of docs/evaluation.md."""

from __future__ import annotations

import sys

import pytest
from support.evaluation.questions import ask, log_likelihoods, make_folders

pytestmark = pytest.mark.vllm


def test_answers_of_the_packed_checkpoint_are_those_of_the_restored_one(tmp_path):
    folders = make_folders(tmp_path)
    command = (sys.executable, "-m", "lm_eval", "--model", "vllm", "--batch_size", "auto")
    packed, restored, source = (
        ask(folders, model, command, ",max_model_len=64,enforce_eager=True")
        for model in ("out", "restored", "source")
    )
    assert log_likelihoods(packed) == pytest.approx(log_likelihoods(restored), rel=1e-3)
    assert log_likelihoods(source) != pytest.approx(log_likelihoods(restored), rel=1e-2)
    for ours, theirs in zip(packed["generating"], restored["generating"], strict=True):
        assert ours["resps"] == theirs["resps"]
