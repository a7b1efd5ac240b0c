"""The installed program as a process: pipes, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support.factories import tiny_checkpoint
from support.processes import PROGRAM


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
HEAVY = (
    *("numpy", "torch", "transformers", "safetensors", "typer", "rich", "scipy"),
    *("huggingface_hub", "httpx", "httpx2"),
)


def heavy_modules(statement: str) -> set[str]:
    """What a statement imports of the heavy modules."""
    code = IMPORTED.format(statement, HEAVY)
    result = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_library_imports_nothing_heavy():
    assert heavy_modules("import tq3") == set()


def test_a_folder_is_read_without_huggingface_hub(tmp_path):
    tiny_checkpoint(tmp_path / "in")
    compress = f"import tq3; tq3.compress({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r})"
    assert heavy_modules(compress) == {"numpy"}


def test_the_help_does_not_wait_for_numpy():
    help_only = "from tq3.cli.app import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    assert heavy_modules(f"exec({help_only!r})") <= {"typer", "rich"}


def test_the_whole_program_needs_neither_torch_nor_safetensors(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    work = f"import tq3; tq3.compress({str(source)!r}, {str(tmp_path / 'out')!r})"
    work += f"; tq3.restore({str(tmp_path / 'out')!r}, {str(tmp_path / 'back')!r})"
    assert heavy_modules(work) == {"numpy"}
