"""A run that is stopped by a signal: it ends soon, says how it goes on, and the next one does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.factories import contents, slow_checkpoint, tiny_checkpoint, visible
from support.processes import (
    PROGRAM,
    end_of,
    has_done_work,
    processor_seconds,
    processor_seconds_of_ended,
    start,
    wait_until,
)

# Of processor time, for the machine may be busy with other tests. A second on the clock is what is
# promised, of two workers.
SOON_SECONDS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work for many seconds by the slow codec, for less than one by a fast one."""
    return slow_checkpoint(tmp_path_factory.mktemp("slow") / "in")


@pytest.fixture(scope="module")
def whole(source: Path) -> Iterator[dict[str, bytes]]:
    """What an uninterrupted run writes."""
    out = source.parent / "whole"
    subprocess.run((*PROGRAM, "compress", source, out, "-q"), check=True)
    yield contents(out)
    shutil.rmtree(source.parent)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_ends_soon_and_the_same_command_completes_it(
    source, whole, tmp_path, number, workers, record_property
):
    out = tmp_path / "out"
    with start("compress", source, out, "--backend", "numpy", "--workers", workers) as run:
        wait_until(lambda: has_done_work(out), run)
        others, so_far = processor_seconds_of_ended(), processor_seconds(run)
        run.send_signal(number)
        stdout, stderr = end_of(run)
        seconds = processor_seconds_of_ended() - others - so_far
    record_property("seconds", seconds)
    assert (run.returncode, stdout) == (130, "")
    assert "interrupted" in stderr
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert visible(out) == {}
    assert seconds < SOON_SECONDS
    again = subprocess.run(
        (*PROGRAM, "compress", source, out), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    assert "continuing an unfinished run" in again.stderr
    assert contents(out) == whole


def test_a_run_that_is_stopped_twice_ends_like_one_that_is_stopped_once(source, tmp_path):
    out = tmp_path / "out"
    with start("compress", source, out, "--backend", "numpy") as run:
        wait_until(lambda: has_done_work(out), run)
        for _ in range(3):
            run.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, stderr = end_of(run)
    assert run.returncode == 130
    assert "Traceback" not in stderr
    assert has_done_work(out)


SIGNALLED_AT = """
import builtins, signal, sys
name, number, plain = sys.argv.pop(1), int(sys.argv.pop(1)), builtins.__import__
def signalled(module, *arguments, **named):
    if module == name:
        signal.raise_signal(number)
    return plain(module, *arguments, **named)
signal.signal(signal.SIGINT, signal.default_int_handler)
from tq3.__main__ import main
builtins.__import__ = signalled
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "module", ["tq3.cli.app", "typer", "rich.console", "tq3.verification.verify", "numpy"]
)
def test_a_stop_in_the_midst_of_any_import_is_one_sentence(tmp_path, module, number):
    source = tiny_checkpoint(tmp_path / "in")
    with start(module, int(number), "inspect", source, code=SIGNALLED_AT) as run:
        stdout, stderr = end_of(run)
    assert (run.returncode, stdout, stderr) == (130, "", "tq3: interrupted\n")


TOLD_WHEN_READY = """
import signal
from tq3 import __main__ as program
leave_at_once = program.leave_at_once
def ready():
    leave_at_once()
    print("ready", flush=True)
program.leave_at_once = ready
signal.signal(signal.SIGINT, signal.default_int_handler)
program.main()
"""


@pytest.mark.parametrize("seconds", [0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3])
def test_a_stop_soon_after_the_start_is_one_sentence(source, tmp_path, seconds):
    arguments = ("compress", source, tmp_path / "out", "--backend", "numpy")
    with start(*arguments, code=TOLD_WHEN_READY) as run:
        assert run.stdout and run.stdout.readline() == "ready\n"
        time.sleep(seconds)
        run.send_signal(signal.SIGINT)
        stdout, stderr = end_of(run)
    assert (run.returncode, stdout) == (130, "")
    assert "tq3: interrupted\n" in stderr
    assert "Traceback" not in stderr


INTERRUPTED_AT = """
from tq3.__main__ import main
from tq3.storage.shard_file import ShardFile
opened = ShardFile.{method}
def interrupted(*arguments, **options):
    opened(*arguments, **options)
    raise KeyboardInterrupt
ShardFile.{method} = interrupted
main()
"""


@pytest.mark.parametrize(
    ("method", "done"), [("__init__", False), ("write", False), ("finish", True), ("close", True)]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_at_the_worst_moment_ends_the_program_too(tmp_path, method, done, workers):
    source, out = tiny_checkpoint(tmp_path / "in"), tmp_path / "out"
    code = INTERRUPTED_AT.format(method=method)
    with start("compress", source, out, "--workers", workers, code=code) as run:
        _, stderr = end_of(run)
    assert run.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert visible(out) == {}
    assert has_done_work(out) == out.exists() == done


def test_a_killed_run_leaves_no_checkpoint_and_its_lock_dies_with_it(source, whole, tmp_path):
    out = tmp_path / "out"
    with start("compress", source, out, "--backend", "numpy") as run:
        wait_until(lambda: has_done_work(out), run)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert visible(out) == {}
    subprocess.run((*PROGRAM, "compress", source, out, "-q"), check=True)
    assert contents(out) == whole


def test_after_a_killed_run_another_one_needs_overwrite(source, tmp_path):
    out, small = tmp_path / "out", tiny_checkpoint(tmp_path / "small")
    with start("compress", source, out, "--backend", "numpy") as run:
        wait_until(lambda: has_done_work(out), run)
        run.kill()
    command = (*PROGRAM, "compress", small, out)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "an unfinished run is in the target" in refused.stderr
    assert "model.safetensors" in refused.stderr
    subprocess.run((*command, "-q", "--overwrite"), check=True)
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "tq_config.json", "tq3_manifest.json"}


def test_a_second_run_on_one_target_is_refused_while_the_first_is_alive(source, tmp_path):
    out, small = tmp_path / "out", tiny_checkpoint(tmp_path / "small")
    with start("compress", source, out, "--backend", "numpy") as run:
        wait_until(lambda: has_done_work(out), run)
        for checkpoint in (small, source):
            second = subprocess.run(
                (*PROGRAM, "compress", checkpoint, out, "--overwrite"),
                capture_output=True,
                text=True,
                check=False,
            )
            assert second.returncode == 2
            assert "another run is writing here" in " ".join(second.stderr.split())
            assert "Traceback" not in second.stderr
        assert run.poll() is None
        drafts = sorted(path.name for path in (out / ".tq3.part").iterdir())
        run.kill()
    assert drafts == ["journal", "model-00001.safetensors.part"]
