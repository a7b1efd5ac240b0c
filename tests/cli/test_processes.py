"""The installed program as a process: signals, pipes, and what it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import slow_checkpoint, tiny_checkpoint

PROGRAM = (str(Path(sys.executable).with_name("tq3")),)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the draft is there."""
    end = time.monotonic() + 30
    while not list(path.glob(".tq3.part/*.safetensors.part")):
        assert process.poll() is None, "ended before it was stopped"
        if time.monotonic() > end:
            process.kill()
        time.sleep(0.02)


def end_of(run: subprocess.Popen) -> tuple[str, str]:
    """What a process said, once it has ended; one that hangs is killed and fails the test."""
    try:
        return run.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        run.kill()
        raise


# A test run in the background of a shell ignores SIGINT, and so would its children.
IN_THE_FOREGROUND = """
import signal
from tq3.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stopped_run_ends_with_130_and_leaves_nothing(tmp_path, number, workers):
    source, out = slow_checkpoint(tmp_path / "in"), tmp_path / "out"
    command = (sys.executable, "-c", IN_THE_FOREGROUND, "compress", source, out)
    command += ("--backend", "numpy", "--workers", workers)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        wait_for(out, run)
        run.send_signal(number)
        stdout, stderr = end_of(run)
    assert run.returncode == 130
    assert stdout == ""
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not out.exists()


INTERRUPTED_AT = """
from tq3.cli.app import main
from tq3.storage.shard_file import ShardFile
opened = ShardFile.{method}
def interrupted(*arguments, **options):
    opened(*arguments, **options)
    raise KeyboardInterrupt
ShardFile.{method} = interrupted
main()
"""


@pytest.mark.parametrize("method", ["__init__", "write", "close"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_at_the_worst_moment_ends_the_program_too(tmp_path, method, workers):
    source, out = tiny_checkpoint(tmp_path / "in"), tmp_path / "out"
    code = INTERRUPTED_AT.format(method=method)
    command = (sys.executable, "-c", code, "compress", source, out, "--workers", workers)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        _, stderr = end_of(run)
    assert run.returncode == 130
    assert "interrupted" in stderr
    assert not out.exists()


def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_succeeds(tmp_path):
    source, out = slow_checkpoint(tmp_path / "in"), tmp_path / "out"
    command = (*PROGRAM, "compress", source, out, "--backend", "numpy")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        wait_for(out, run)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert not (out / "tq_config.json").exists()
    assert not list(out.glob("*.safetensors"))
    small = tiny_checkpoint(tmp_path / "small")
    subprocess.run((*PROGRAM, "compress", small, out, "-q"), check=True)
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "tq_config.json"}


def test_a_second_run_on_one_target_is_refused_while_the_first_is_alive(tmp_path):
    source, out = slow_checkpoint(tmp_path / "in"), tmp_path / "out"
    small = tiny_checkpoint(tmp_path / "small")
    command = (*PROGRAM, "compress", source, out, "--backend", "numpy")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        wait_for(out, run)
        second = subprocess.run(
            (*PROGRAM, "compress", small, out, "--overwrite"),
            capture_output=True,
            text=True,
            check=False,
        )
        drafts = [path.name for path in (out / ".tq3.part").iterdir()]
        run.kill()
    assert second.returncode == 2
    assert "another run is writing here" in " ".join(second.stderr.split())
    assert "Traceback" not in second.stderr
    assert drafts == ["model-00001.safetensors.part"]


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    command = (*PROGRAM, "inspect", source, "--tensors")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        stderr = run.stderr.read()
    assert "Traceback" not in stderr


def test_a_tensor_in_a_pipe_is_one_line_however_narrow_the_terminal(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    environment = os.environ | {"COLUMNS": "20"}
    result = subprocess.run(
        (*PROGRAM, "inspect", source, "--tensors"),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    (line,) = [ln for ln in result.stdout.splitlines() if "layers.1.mlp.up_proj.weight" in ln]
    assert "a matrix of weights" in line


IMPORTED = "import json, sys; {}; print(json.dumps([m for m in sys.modules if m in {!r}]))"
HEAVY = ("numpy", "torch", "transformers", "safetensors", "typer", "rich", "scipy")


def heavy_modules(statement: str) -> set[str]:
    """What a statement imports of the heavy modules."""
    code = IMPORTED.format(statement, HEAVY)
    result = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_library_imports_nothing_heavy():
    assert heavy_modules("import tq3") == set()


def test_the_help_does_not_wait_for_numpy():
    help_only = "from tq3.cli.app import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    assert heavy_modules(f"exec({help_only!r})") <= {"typer", "rich"}


def test_the_whole_program_needs_neither_torch_nor_safetensors(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    work = f"import tq3; tq3.compress({str(source)!r}, {str(tmp_path / 'out')!r})"
    work += f"; tq3.restore({str(tmp_path / 'out')!r}, {str(tmp_path / 'back')!r})"
    assert heavy_modules(work) == {"numpy"}
