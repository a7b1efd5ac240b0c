"""Whatever ends a run early: the error arrives, no thread goes on, but the same run can."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, tiny_checkpoint, visible

import tq3
from tq3.errors import StorageError, UsageError
from tq3.events import Event, Planned, Progress
from tq3.parallel import in_parallel
from tq3.storage.shard_file import ShardFile
from tq3.storage.target import TargetFolder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {f"{i}.weight": random_tensor(64, 256, seed=i) for i in range(8)}
    return tiny_checkpoint(tmp_path / "in", tensors, shards=2)


@pytest.fixture(params=[1, 4])
def run(request, source, tmp_path, set_block_bytes) -> Iterator[Callable[[], Iterator[Event]]]:
    """Starts a compression of many blocks.

    Afterwards no thread of it may be alive, no file at its name, and the same run goes on to what
    an uninterrupted one writes.
    """
    set_block_bytes(2000)
    recipe, out = tq3.Recipe(max_shard_bytes=30_000), tmp_path / "out"
    tq3.compress(source, tmp_path / "alone", max_shard_size=30_000)
    before = set(threading.enumerate())
    yield lambda: tq3.compress_checkpoint(source, out, recipe, workers=request.param)
    assert set(threading.enumerate()) == before
    assert visible(out) == {}
    list(tq3.compress_checkpoint(source, out, recipe, workers=request.param))
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.parametrize("n_events", [1, 2, 50])
def test_a_run_whose_events_are_closed_early_can_go_on(run, n_events):
    events = run()
    for _ in range(n_events):
        next(events)
    events.close()


@pytest.mark.parametrize("n_events", [1, 2, 50])
def test_a_run_that_is_interrupted_can_go_on(run, n_events):
    events = run()
    for _ in range(n_events):
        next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)


def test_a_file_that_is_cut_short_meanwhile_is_a_storage_error(run, source):
    file = source / "model-00001-of-00002.safetensors"
    whole, status = file.read_bytes(), file.stat()
    events = run()
    assert isinstance(next(events), Planned)
    os.truncate(file, 50_000)
    with pytest.raises(StorageError, match="cut short") as caught:
        list(events)
    assert caught.value.file == str(file)
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_disk_that_is_full_is_a_storage_error(run):
    writes, write = iter(range(20)), ShardFile.write

    def write_some(self: ShardFile, offset: int, data: memoryview) -> object:
        if next(writes, None) is None:
            raise StorageError("can't be written: No space left on device", file=self.path)
        return write(self, offset, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFile, "write", write_some)
        with pytest.raises(StorageError, match="No space left"):
            list(run())


def test_an_error_of_a_worker_is_raised_as_it_is_and_leaves_nothing(run, tmp_path):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in a worker")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tq3.pipelines.work.Worker.carry_out", fail)
        with pytest.raises(ZeroDivisionError, match="in a worker"):
            list(run())
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_refused_before_a_byte_is_written(tmp_path, source, monkeypatch):
    (source / "notes").write_text("x" * 1000)

    def no_room(self: TargetFolder, n_bytes: int) -> None:
        assert contents(self.folder).keys() == {".tq3.part/journal"}
        raise StorageError(f"no room for {n_bytes}")

    monkeypatch.setattr(TargetFolder, "check_room", no_room)
    events = tq3.compress_checkpoint(source, tmp_path / "out", tq3.Recipe(equalize=False))
    planned = next(events)
    assert isinstance(planned, Planned)
    with pytest.raises(StorageError, match="no room") as caught:
        next(events)
    needed = int(caught.value.message.rpartition(" ")[2])
    assert needed == planned.plan.file_bytes + 1000
    assert not (tmp_path / "out").exists()


def test_a_run_whose_on_event_fails_can_go_on(source, tmp_path):
    def fail(event: Event) -> None:
        if isinstance(event, Progress):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tq3.compress(source, tmp_path / "out", on_event=fail)
    assert visible(tmp_path / "out") == {}
    assert tq3.compress(source, tmp_path / "out").share_before > 0
    tq3.compress(source, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_draft_without_a_journal_is_replaced(source, tmp_path):
    (tmp_path / "out" / ".tq3.part").mkdir(parents=True)
    (tmp_path / "out" / ".tq3.part" / "model-00001.safetensors.part").write_bytes(b"half")
    tq3.compress(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tq_config.json", "tq3_manifest.json"}


def test_a_second_run_on_one_target_is_refused_and_the_first_ends_well(source, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    tq3.compress(source, alone)
    events = tq3.compress_checkpoint(source, out, tq3.Recipe())
    for event in events:
        if isinstance(event, Progress):
            break
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="another run is writing here"):
            tq3.compress(source, out, overwrite=overwrite)
    list(events)
    assert contents(out) == contents(alone)


@pytest.mark.parametrize("command", ["compress", "restore"])
def test_a_side_file_that_vanishes_fails_before_the_shards_and_costs_nothing(
    source, tmp_path, command
):
    """Of a target that is overwritten nothing either."""
    (source / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    tq3.compress(source, out)
    before = contents(out)
    if command == "restore":
        source, out = out, tmp_path / "back"
        out.mkdir()
        (out / "config.json").write_text("old")
        before = contents(out)
        events = tq3.restore_checkpoint(source, out, overwrite=True)
    else:
        events = tq3.compress_checkpoint(source, out, tq3.Recipe(equalize=False), overwrite=True)
    assert isinstance(next(events), Planned)
    (source / "tokenizer.json").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="can't be read") as caught:
        next(events)
    assert caught.value.file == str(source / "tokenizer.json")
    assert contents(out) == before


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_item_is_worked_on_once(workers):
    assert sorted(in_parallel(range(100), lambda: lambda i: i * i, workers)) == [
        i * i for i in range(100)
    ]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_as_many_workers_are_made_as_were_asked_for(workers):
    made: list[object] = []

    def make() -> Callable[[int], int]:
        made.append(None)
        return lambda i: i

    list(in_parallel(range(100), make, workers))
    assert len(made) == workers


@pytest.mark.parametrize("workers", [1, 3])
def test_leaving_early_stops_the_workers_after_what_they_have_in_hand(workers):
    worked: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.001)
        worked.append(item)
        return item

    results = in_parallel(range(3000), lambda: work, workers)
    next(results)
    results.close()
    assert len(worked) < 1000


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_among_the_items_is_raised_too(workers):
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("in the items")

    with pytest.raises(LookupError, match="in the items"):
        list(in_parallel(items(), lambda: lambda i: i, workers))


def test_less_than_one_worker_is_refused(source, tmp_path):
    """In a thread, since the fault would be to wait for ever."""
    errors: list[BaseException] = []

    def compress() -> None:
        try:
            tq3.compress(source, tmp_path / "out", workers=-1)
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=compress, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert "workers" in str(errors[0])
