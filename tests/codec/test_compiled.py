"""A compiled module that is there but broken is a sentence; one that is absent is done without."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import tiny_checkpoint

import tq3

PACKAGE = Path(tq3.__file__).parent
FIX = "install it again: pip install --force-reinstall --no-deps tq3"
RESTORE = "from tq3.__main__ import main; main()"
# Two columns of one group, all codes 0 and norms 0.
MULTIPLY = """
import torch, tq3.runtime.ops
zeros = torch.zeros(2, 12, dtype=torch.uint8), torch.zeros(2, 1)
print(torch.ops.tq3.linear(torch.ones(1, 32), *zeros, 3, 32))
"""


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A module that asks for another symbol, or has one by another name."""
    return lambda code: code.replace(old, new)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda code: b"", "file too short"),
    "cut in the middle": (lambda code: code[: len(code) // 2], "a part of the file"),
    "for another machine": (lambda code: code[:18] + b"\xb7" + code[19:], "cannot open shared"),
    "without a symbol": (replaced(b"\0PyErr_Occurred\0", b"\0PyErr_Occurrex\0"), "undefined sym"),
    "without its entry": (replaced(b"PyInit__", b"PyInix__"), "does not define module export"),
    "an HTML page": (lambda code: b"<html>" * 100, "invalid ELF header"),
}


def module_of(package: Path, module: str) -> Path | None:
    """The file of a compiled module, where it was built."""
    found = [*(package / module).parent.glob(f"{Path(module).name}.*.so")]
    return found[0] if found else None


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, to be spoiled."""
    if module_of(PACKAGE, "codec/_native") is None:
        pytest.skip("an editable installation has its compiled modules elsewhere")
    shutil.copytree(PACKAGE, tmp_path / "copy" / "tq3")
    return tmp_path / "copy" / "tq3"


def run(copy: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code that imports the copy."""
    start = f"import sys; sys.path.insert(0, {str(copy.parent)!r})\n{code}"
    command = (sys.executable, "-c", start, *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=copy.parent)


@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_codec_is_a_sentence_that_says_what_to_do(copy, tmp_path, spoil, words):
    file = module_of(copy, "codec/_native")
    if not file:
        pytest.skip("installed without a compiler")
    file.write_bytes(spoil(file.read_bytes()))
    result = run(copy, RESTORE, "compress", tiny_checkpoint(tmp_path / "in"), tmp_path / "out")
    assert result.returncode == 4
    begin = f"tq3: error: {file}: this compiled part of tq3 can't be loaded (found "
    (line,) = result.stderr.splitlines()
    assert line.startswith(begin)
    assert words in line
    assert line.endswith(FIX)


def test_a_broken_kernel_is_not_taken_for_an_absent_one(copy):
    file = module_of(copy, "runtime/_linear")
    if not file:
        pytest.skip("installed without a compiler")
    file.write_bytes(file.read_bytes()[:100_000])
    result = run(copy, MULTIPLY)
    assert f"StorageError: {file}: this compiled part of tq3 can't be loaded" in result.stderr
    file.unlink()
    result = run(copy, MULTIPLY)
    assert (result.returncode, "without its compiled kernels" in result.stderr) == (0, True)


def test_an_absent_codec_is_numpy_and_a_notice(copy, tmp_path):
    file = module_of(copy, "codec/_native")
    if file:
        file.unlink()
    result = run(copy, RESTORE, "compress", tiny_checkpoint(tmp_path / "in"), tmp_path / "out")
    assert (result.returncode, "no compiled codec: numpy" in result.stderr) == (0, True)
