"""scripts/validate.py goes the whole way with the real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow  # two models, each loaded twice
def test_the_whole_way_ends_in_one_table_and_the_same_figures_as_json(smollm2, tmp_path):
    script, out = PROJECT / "scripts" / "validate.py", tmp_path / "figures.json"
    options = ("--no-compile", "--tokens", "40", "--new-tokens", "4", "--json", out)
    command = (sys.executable, script, smollm2, *options)
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(out.read_text())
    assert figures["faults"] == []
    measures = figures["measures"]
    assert measures["n_tokens"] == 40  # BOS comes before them, so that the first is predicted, too
    assert 1 < measures["source_perplexity"] < measures["perplexity"]
    assert 0 < measures["kl"] < 5
    assert figures["packed"]["weight_bytes"] < figures["source"]["weight_bytes"] / 2
    assert f"{measures['kl']:.4f}" in run.stdout
    assert f"{figures['packed']['weight_bytes'] / 1e6:,.1f}" in run.stdout
    assert repr(figures["packed"]["text"]) in run.stdout
