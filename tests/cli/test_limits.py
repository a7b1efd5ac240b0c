"""Real limits of the system, each for a program of its own: memory, a full disk, another disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, tiny_checkpoint, visible
from support.processes import PROGRAM, end_of, start

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="asks Linux for the size of the address space"
)

# Everything is imported already: what is limited is what the work itself takes.
LITTLE_MEMORY = """
import resource, sys
import tq3.api
from pathlib import Path
from tq3.__main__ import main
from tq3.cli.screen import Screen
megabytes, watch = int(sys.argv.pop(1)), Screen.watch
def watch_with_little(*arguments):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return watch(*arguments)
Screen.watch = watch_with_little
main()
"""


@pytest.fixture
def source(tmp_path) -> Path:
    """Work for two workers: 24 MB."""
    tensors = {f"{i}.weight": random_tensor(2048, 2048, seed=i) for i in range(3)}
    return tiny_checkpoint(tmp_path / "in", tensors)


@pytest.fixture
def whole(source, tmp_path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    complete(source, tmp_path / "whole")
    return contents(tmp_path / "whole")


def complete(source: Path, out: Path) -> None:
    """A run without limits."""
    subprocess.run((*PROGRAM, "compress", source, out, "-q"), check=True)


@needs_linux
def test_too_little_memory_is_one_sentence_and_the_run_goes_on_with_more(source, whole, tmp_path):
    codes = {}
    for megabytes in (1, 4, 8, 12, 16, 24, 32, 64, 1024):
        out = tmp_path / str(megabytes)
        options = ("--workers", 2)
        with start(megabytes, "compress", source, out, *options, code=LITTLE_MEMORY) as run:
            _, stderr = end_of(run)
        codes[megabytes] = run.returncode
        assert run.returncode in (0, 4), stderr
        assert "Traceback" not in stderr
        if run.returncode == 4:
            assert "not enough memory; fewer --workers need less" in stderr
            assert visible(out) == {}
            complete(source, out)
        assert contents(out) == whole
    assert (codes[1], codes[1024]) == (4, 0)


SMALL_FILES = """
import resource, signal, sys
from tq3.__main__ import main
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


@pytest.mark.parametrize("share", [0, 0.001, 0.9])
def test_a_limit_of_file_sizes_is_an_error_of_storage(source, whole, tmp_path, share):
    limit, out = int(len(whole["model.safetensors"]) * share), tmp_path / "out"
    with start(limit, "compress", source, out, code=SMALL_FILES) as run:
        _, stderr = end_of(run)
    assert run.returncode == 4
    assert "can't be written: File too large" in stderr
    assert "Traceback" not in stderr
    assert visible(out) == {}
    complete(source, out)
    assert contents(out) == whole


@contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of this size, where one may be mounted."""
    path.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", path)
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(("umount", path), check=True)


def test_a_run_on_a_disk_that_is_full_goes_on_when_there_is_room(tmp_path):
    tensors = {f"{i}.weight": random_tensor(2048, 1024, seed=i) for i in range(4)}
    source, options = tiny_checkpoint(tmp_path / "in", tensors), ("--max-shard-size", "900kB")
    command = (*PROGRAM, "compress", source)
    subprocess.run((*command, tmp_path / "whole", *options, "-q"), check=True)
    whole = contents(tmp_path / "whole")
    room = sum(map(len, whole.values()))
    with small_disk(tmp_path / "disk", room + 2**18) as disk:
        out, ballast = disk / "out", disk / "ballast"
        ballast.write_bytes(bytes(room // 2))
        arguments = (*command, out, *options)
        checked = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (checked.returncode, out.exists()) == (4, False)
        assert "not enough free space" in checked.stderr
        # Somebody else fills the disk after that was seen to.
        unchecked = "from tq3.storage.target import TargetFolder\n"
        unchecked += "TargetFolder.check_room = lambda *_: None\n"
        unchecked += "from tq3.__main__ import main\nmain()"
        with start("compress", source, out, *options, code=unchecked) as run:
            _, stderr = end_of(run)
        assert run.returncode == 4
        assert "No space left on device" in stderr
        assert "the same command goes on" in stderr
        assert visible(out) == {}
        os.unlink(ballast)
        again = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert "continuing an unfinished run" in again.stderr
        assert contents(out) == whole
