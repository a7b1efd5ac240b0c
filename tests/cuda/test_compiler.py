"""Kernels compiled where they run, and kept on the disk; it needs NVRTC, and no GPU."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from tq3.runtime.cuda import compiler, source

INSTANCE = "rotate_quantise<Dtype::kF32, 32, 32>"


def compiled(cache, instance=INSTANCE, architecture="sm_80"):
    return compiler.compiled("rotate_quantise", instance, architecture, cache)


def files(cache):
    return sorted(cache.iterdir()) if cache.exists() else []


@pytest.fixture
def no_compiler(monkeypatch):
    """Call it, and nothing is compiled any more."""

    def forbid():
        def refuse(*_):
            raise AssertionError("compiled again")

        monkeypatch.setattr(compiler, "_compile", refuse)

    return forbid


def test_a_kernel_is_compiled_once_and_then_read(tmp_path, no_compiler):
    first = compiled(tmp_path)
    assert first.cubin.startswith(b"\x7fELF")
    assert first.function.encode() in first.cubin
    no_compiler()
    assert compiled(tmp_path) == first


def test_a_folder_that_others_may_write_to_is_not_read(tmp_path, no_compiler):
    compiled(tmp_path)
    tmp_path.chmod(0o777)
    no_compiler()
    with pytest.raises(AssertionError, match="again"):
        compiled(tmp_path)


def test_who_has_no_home_has_no_folder(monkeypatch):
    def nobody():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert compiler.default_cache() is None
    assert compiled(None).cubin


def test_what_the_compiler_says_is_written_to_nothing_that_python_shares(tmp_path):
    compiled(tmp_path)
    with pytest.raises(RuntimeError, match="does not compile"):
        compiled(tmp_path, instance="rotate_quantise<Dtype::kF32, 64>")
    assert [bytes([i])[0] for i in range(256)] == list(range(256))


def test_another_architecture_instance_or_text_is_another_file(tmp_path, monkeypatch):
    compiled(tmp_path)
    compiled(tmp_path, architecture="sm_90")
    compiled(tmp_path, instance="rotate_quantise<Dtype::kF32, 64, 32>")
    text = source.kernel("rotate_quantise")
    monkeypatch.setattr(source, "kernel", lambda _: text + "\n// changed\n")
    compiled(tmp_path)
    monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "--device-debug"))
    compiled(tmp_path)
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw + b"x"])
def test_a_damaged_file_is_compiled_again(tmp_path, damage):
    first = compiled(tmp_path)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert compiled(tmp_path) == first
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert compiled(blocked).cubin.startswith(b"\x7fELF")


def test_processes_that_start_at_once_find_the_same_code(tmp_path):
    program = (
        "import sys, pathlib; from tq3.runtime.cuda.compiler import compiled;"
        f"code = compiled('rotate_quantise', '{INSTANCE}', 'sm_80', pathlib.Path(sys.argv[1]));"
        "sys.stdout.buffer.write(code.cubin)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert found == {compiled(tmp_path).cubin}
    assert [file.suffix for file in files(tmp_path)] == [".cubin"]


def test_only_this_user_reads_what_is_kept(tmp_path):
    compiled(tmp_path)
    (file,) = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.default_cache() == tmp_path / "tq3" / "kernels"


def test_what_does_not_compile_is_told_with_the_compilers_words(tmp_path):
    with pytest.raises(RuntimeError, match="sm_80.*error"):
        compiled(tmp_path, instance="rotate_quantise<Dtype::kF32, 33>")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_103"),
        ((12, 0), "sm_120"),
        ((12, 9), "sm_121"),
        ((99, 0), None),
    ],
)
def test_code_is_for_the_devices_own_major_version(capability, architecture):
    assert compiler.architecture_for(capability) == architecture
