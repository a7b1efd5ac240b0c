"""A run that was interrupted anywhere goes on to the bytes of one that was not."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xxhash
from support.factories import (
    Tensor,
    contents,
    mixed_tensors,
    random_tensor,
    spoiled,
    tiny_checkpoint,
    too_large,
    visible,
)
from support.pipelines.interrupting import (
    BLOCK_BYTES,
    SHARD_BYTES,
    Stopped,
    counted_blocks,
    end_after,
    unfinished,
)

import tq3
from tq3.codec.backend import available_backends
from tq3.errors import BadInput, UsageError
from tq3.events import Event, Notice, Progress, Report, Run, follow
from tq3.format.manifest import parse_manifest
from tq3.pipelines.work import Worker

RECIPE = tq3.Recipe(max_shard_bytes=SHARD_BYTES, equalize=False)

Start = Callable[..., Run[Report]]


@pytest.fixture(autouse=True)
def patient_small_blocks(set_block_bytes, monkeypatch) -> None:
    """Many blocks in small tensors; a busy disk has time for the last flush."""
    set_block_bytes(BLOCK_BYTES)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)


def start_compress(path: Path, out: Path, **options: Any) -> Run[Any]:
    """A compression of the checkpoint in `path`."""
    return tq3.compress_checkpoint(path / "in", out, RECIPE, **options)


def start_restore(path: Path, out: Path, **options: Any) -> Run[Any]:
    """A restoration of the TQ3 checkpoint in `path`."""
    return tq3.restore_checkpoint(path / "tq3", out, max_shard_bytes=20_000, **options)


@pytest.fixture(params=[start_compress, start_restore], ids=["compress", "restore"])
def start(request, tmp_path) -> Start:
    """Starts a pipeline into a folder, with options."""
    tiny_checkpoint(tmp_path / "in", mixed_tensors(), shards=3)
    if request.param is start_restore:
        list(start_compress(tmp_path, tmp_path / "tq3"))
    return lambda out, **options: request.param(tmp_path, out, **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_that_ends_after_any_event_goes_on_to_the_same_bytes(start, tmp_path, workers):
    n_events = len(list(start(tmp_path / "whole")))
    whole = contents(tmp_path / "whole")
    assert n_events > 30
    for n in range(1, n_events, 4):
        out = tmp_path / str(n)
        end_after(start(out, workers=workers), n)
        assert unfinished(out)
        list(start(out, workers=workers))
        assert contents(out) == whole, f"after {n} events"


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_done_is_not_done_again(start, tmp_path, workers):
    with counted_blocks() as all_of_them:
        list(start(tmp_path / "whole"))
    with counted_blocks(0.9 * len(all_of_them)) as first, pytest.raises(Stopped):
        list(start(tmp_path / "out", workers=workers))
    with counted_blocks() as second:
        events: list[Event] = []
        report = follow(start(tmp_path / "out", workers=workers), events.append)
    assert sorted(first + second) == sorted(all_of_them)
    assert len(second) <= 0.15 * len(all_of_them)
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[0].bytes_before >= 0.7 * steps[0].bytes_total
    assert steps[-1].bytes_done == steps[-1].bytes_total
    (told,) = [event.text for event in events if isinstance(event, Notice)]
    assert told.startswith("continuing an unfinished run")
    assert report.share_before == steps[0].bytes_before / steps[0].bytes_total


def test_a_run_may_be_interrupted_again_and_again(start, tmp_path):
    with counted_blocks() as all_of_them:
        list(start(tmp_path / "whole"))
    runs, ended = 0, False
    with counted_blocks() as carried:
        while not ended:
            # The plan, and from the second run on a notice; then one or two shards' events.
            ended = end_after(start(tmp_path / "out", workers=1), 8)
            runs += 1
    assert runs > 4
    assert sorted(carried) == sorted(all_of_them)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_goes_on_with_other_workers_and_another_backend(start, tmp_path):
    n_events = len(list(start(tmp_path / "whole")))
    options = [{"workers": 1, "backend": name} for name in available_backends()]
    options += [{"workers": 4}, {"workers": 2, "backend": "numpy"}]
    share = n_events // (len(options) + 1)
    for chosen in options:
        end_after(start(tmp_path / "out", **chosen), share)
        assert unfinished(tmp_path / "out")
    list(start(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_older_checkpoint_stays_until_the_new_one_is_complete(start, tmp_path):
    n_events = len(list(start(tmp_path / "whole")))
    out = tmp_path / "out"
    tq3.compress(tiny_checkpoint(tmp_path / "older"), out)
    older = contents(out)
    for n in (1, n_events // 3, n_events // 2):
        end_after(start(out, overwrite=True), n)
        assert visible(out) == older
    for _ in start(out, overwrite=True):
        assert visible(out) == older
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("layers", [(0,), (3,), (1, 2), (0, 1, 2, 3)], ids=str)
def test_what_was_found_before_the_end_is_known_to_the_next_run(tmp_path, layers):
    """Values that overflow, in a shard before the one that is interrupted or in that one."""
    tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), *layers), shards=2)
    events = list(start_compress(tmp_path, tmp_path / "whole"))
    whole = contents(tmp_path / "whole")
    kept = [e.text.split()[0] for e in events if isinstance(e, Notice)]
    assert kept == [f"layers.{i}.norm.weight" for i in layers]
    for n in range(1, len(events), 5):
        out = tmp_path / str(n)
        end_after(start_compress(tmp_path, out, workers=2), n)
        second = list(start_compress(tmp_path, out, workers=2))
        assert contents(out) == whole, f"after {n} events"
        told = [e.text.split()[0] for e in second if isinstance(e, Notice)]
        assert [name for name in told if name != "continuing"] == kept
        steps = [event for event in second if isinstance(event, Progress)]
        assert all(step.bytes_done <= step.bytes_total for step in steps)


def nan_tensors() -> dict[str, Tensor]:
    """Sound tensors, and after them one with a NaN."""
    tensors = mixed_tensors()
    return tensors | {"last.weight": spoiled(random_tensor(40, 128), (30, 5), float("nan"))}


def test_after_an_error_of_a_value_the_run_goes_on_with_nonfinite_keep(tmp_path):
    source, out = tiny_checkpoint(tmp_path / "in", nan_tensors()), tmp_path / "out"
    compress = partial(tq3.compress, source, max_shard_size=SHARD_BYTES)
    compress(tmp_path / "whole", nonfinite="keep")
    with pytest.raises(BadInput, match="nan at row 30, column 5"):
        compress(out)
    assert unfinished(out)
    assert compress(out, nonfinite="keep").share_before > 0.5
    assert contents(out) == contents(tmp_path / "whole")


def test_what_nonfinite_keep_let_pass_does_not_slip_into_a_run_that_refuses_it(tmp_path):
    tensors = {"first.weight": nan_tensors()["last.weight"], **mixed_tensors()}
    source, out = tiny_checkpoint(tmp_path / "in", tensors), tmp_path / "out"
    lenient = tq3.Recipe(max_shard_bytes=SHARD_BYTES, nonfinite="keep")
    end_after(tq3.compress_checkpoint(source, out, lenient), 30)
    with pytest.raises(tq3.UsageError, match="--nonfinite keep became --nonfinite error"):
        tq3.compress(source, out, max_shard_size=SHARD_BYTES)
    with pytest.raises(BadInput, match="nan at row 30, column 5"):
        tq3.compress(source, out, max_shard_size=SHARD_BYTES, overwrite=True)


def test_the_manifest_after_interruptions_is_true_and_that_of_a_whole_run(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 2), shards=2)
    (source / "notes.txt").write_text("beside")
    list(start_compress(tmp_path, tmp_path / "whole"))
    for n in (10, 20, 30):
        end_after(start_compress(tmp_path, tmp_path / "out"), n)
    list(start_compress(tmp_path, tmp_path / "out"))
    files = contents(tmp_path / "out")
    assert files == contents(tmp_path / "whole")
    listed = parse_manifest(files.pop("tq3_manifest.json").decode()).files
    assert listed.keys() == files.keys()
    for name, pieces in listed.items():
        ends = [piece.offset + piece.length for piece in pieces]
        assert [piece.offset for piece in pieces] == [0, *ends[:-1]]
        assert ends[-1] == len(files[name])
        for piece in pieces:
            data = files[name][piece.offset : piece.offset + piece.length]
            assert xxhash.xxh3_64_hexdigest(data) == piece.digest


def test_without_resume_the_work_is_done_anew(start, tmp_path):
    with counted_blocks() as all_of_them:
        list(start(tmp_path / "out"))
    whole = contents(tmp_path / "out")
    for options in ({"resume": False}, {"resume": False, "overwrite": True}):
        end_after(start(tmp_path / "again"), 30)
        with counted_blocks() as carried:
            list(start(tmp_path / "again", **options))
        assert sorted(carried) == sorted(all_of_them)
        assert contents(tmp_path / "again") == whole
        (tmp_path / "again").rename(tmp_path / f"again {len(options)}")


def test_overwrite_goes_on_too(start, tmp_path):
    with counted_blocks() as all_of_them:
        list(start(tmp_path / "whole"))
    end_after(start(tmp_path / "out"), 30)
    with counted_blocks() as carried:
        report = follow(start(tmp_path / "out", overwrite=True))
    assert report.share_before > 0
    assert 0 < len(carried) < 0.8 * len(all_of_them)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_nonfinite_keep_let_pass_is_refused_after_an_error_and_a_lenient_run_too(tmp_path):
    """The journal tells of the last run that went on, not of the first."""
    source, out = tiny_checkpoint(tmp_path / "in", nan_tensors()), tmp_path / "out"
    with pytest.raises(BadInput):
        tq3.compress(source, out, max_shard_size=SHARD_BYTES)
    recipe = tq3.Recipe(nonfinite="keep", max_shard_bytes=SHARD_BYTES)
    lenient = tq3.compress_checkpoint(source, out, recipe, workers=1)
    for event in lenient:
        if isinstance(event, Notice) and "nan" in event.text:
            break
    lenient.close()
    with pytest.raises(UsageError, match="--nonfinite keep became --nonfinite error"):
        tq3.compress(source, out, max_shard_size=SHARD_BYTES)
    assert not (out / "tq_config.json").exists()


def test_workers_and_their_memory_end_with_their_shard(tmp_path):
    """Without waiting for the collector of cycles: a large model has many shards."""
    source = tiny_checkpoint(tmp_path / "in", mixed_tensors())
    gc.collect()
    gc.disable()
    try:
        tq3.compress(source, tmp_path / "out", max_shard_size=SHARD_BYTES, workers=2)
        assert not [each for each in gc.get_objects() if type(each) is Worker]
    finally:
        gc.enable()
