"""Nothing that lies in a source folder is executed, imported or unpickled."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.factories import tiny_checkpoint

PROGRAM = str(Path(sys.executable).with_name("tq3"))
CONFIG = {
    "architectures": ["XModel"],
    "auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"},
    "trust_remote_code": True,
}
# Of the program's own modules and of what Python itself looks for.
MODULES = (
    *("modeling_x", "configuration_x", "setup", "conftest", "sitecustomize", "usercustomize"),
    *("__init__", "__main__", "numpy", "json", "typer", "safetensors", "tq3", "torch"),
)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def mined(tmp_path: Path) -> Path:
    """A checkpoint in which everything that could be run leaves a file in `ran/`."""
    source, ran = tiny_checkpoint(tmp_path / "in", config=CONFIG), tmp_path / "ran"
    ran.mkdir()
    for name in MODULES:
        (source / f"{name}.py").write_text(f"open({str(ran / name)!r}, 'w').close()\n")
    for name in ("pytorch_model.bin", "training_args.bin", "model.pkl", "optimizer.pt", "x.ckpt"):
        (source / name).write_bytes(pickle.dumps(Bomb(ran / name)))
    (source / "evil.pth").write_text(f"import os; open({str(ran / 'pth')!r}, 'w').close()\n")
    (source / "install.sh").write_text(f"#!/bin/sh\ntouch {ran / 'install'}\n")
    (source / "install.sh").chmod(0o755)
    return source


def test_the_mines_work(mined, tmp_path):
    pickle.loads((mined / "pytorch_model.bin").read_bytes())
    subprocess.run([sys.executable, mined / "modeling_x.py"], check=True)
    names = {path.name for path in (tmp_path / "ran").iterdir()}
    assert names == {"pytorch_model.bin", "modeling_x"}


def test_no_command_runs_anything_of_a_source_not_even_from_inside_it(mined, tmp_path):
    for command in (
        ("inspect", "."),
        ("compress", ".", tmp_path / "out"),
        ("inspect", tmp_path / "out"),
        ("restore", tmp_path / "out", tmp_path / "back"),
    ):
        subprocess.run([PROGRAM, *command], check=True, cwd=mined, capture_output=True)
    assert list((tmp_path / "ran").iterdir()) == []
    # Code travels along as text, as any side file does; pickles do not.
    out = {path.name for path in (tmp_path / "out").iterdir()}
    assert "modeling_x.py" in out
    assert not out & {"pytorch_model.bin", "training_args.bin", "model.pkl", "optimizer.pt"}
