"""docs/reliability.md names the test that proves each promise: it must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_promise_names_tests_that_there_are():
    text = (ROOT / "docs" / "reliability.md").read_text()
    promises = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    named = [set(re.findall(r"`(test_\w+)`", line)) for line in promises[1:]]
    assert len(named) > 10
    assert all(named)
    there = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set().union(*named) <= there
