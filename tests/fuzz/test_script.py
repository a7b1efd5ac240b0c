"""scripts/fuzz.sh where there is nothing to fuzz with: a user is told, CI fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.sh"
# Without python3, clang++ and apt-get.
TOOLS = ("sh", "dirname", "mkdir", "id")


@pytest.mark.parametrize(("required", "code"), [({}, 0), ({"FUZZ_REQUIRED": "1"}, 1)])
def test_what_is_left_out_is_said_and_fails_where_it_is_required(tmp_path, required, code):
    for name in TOOLS:
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    environment = os.environ | {"PATH": str(tmp_path), "FUZZ_REQUIRED": ""} | required
    result = subprocess.run(
        (tmp_path / "sh", SCRIPT), capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == code
    for part in ("readers", "kernels"):
        assert f"fuzz: {part} SKIPPED" in result.stderr
    assert ("not fuzzed: readers kernels" in result.stderr) == bool(required)
