"""The one real model of the suite; the demo uses the same folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in bf16, made on first use (15 s) and kept in build/."""
    folder = PROJECT / "build" / "smollm2"
    script = PROJECT / "scripts" / "make_demo_model.py"
    subprocess.run([sys.executable, script, folder], check=True)
    return folder
