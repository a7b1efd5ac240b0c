"""The factors that parts share, when their file is damaged or others take their place."""

from __future__ import annotations

from typing import Any

import pytest
from support.factories import tiny_checkpoint, visible, whole_llama, whole_llama_config
from support.pipelines.divided import run_parts
from support.pipelines.interrupting import counted_blocks
from support.pipelines.spoiling import flip

import tq3
from tq3.equalization.estimate import estimate_factors
from tq3.errors import BadInput
from tq3.events import Run
from tq3.format.equalization import Factors
from tq3.storage.parts import parts_folder


def test_damaged_factors_are_measured_anew_by_a_part_that_overwrites(tmp_path, monkeypatch):
    """Where they come to others, the parts that were written with the old ones are named."""
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), 2, whole_llama_config())
    options: dict[str, Any] = {"workers": 1, "max_shard_size": 30_000, "equalize": True}
    out = tmp_path / "out"
    run_parts(source, out, 2, **options)
    flip(parts_folder(out) / "factors", 300)
    for run in (lambda: run_parts(source, out, 2, [1], **options), lambda: tq3.finish(out)):
        with pytest.raises(BadInput, match=r"factors: damaged.*run any part with --overwrite"):
            run()
    with counted_blocks() as again:
        run_parts(source, out, 2, [2], overwrite=True, **options)
    assert again == []  # the factors are the same
    assert tq3.parts(out).faults == {}

    def other(*arguments: Any) -> Run[Factors]:
        found = yield from estimate_factors(*arguments)
        return {name: found[name][::-1] for name in found}

    monkeypatch.setattr("tq3.pipelines.compress.estimate_factors", other)
    flip(parts_folder(out) / "factors", 300)
    run_parts(source, out, 2, [2], overwrite=True, **options)
    told = r"1 of 2 parts .*part 1: of another run .its factors of columns .*with --overwrite"
    with pytest.raises(BadInput, match=told):
        tq3.finish(out)
    run_parts(source, out, 2, [1], overwrite=True, **options)
    monkeypatch.undo()
    tq3.finish(out)
    assert "tq_config.json" in visible(out)
