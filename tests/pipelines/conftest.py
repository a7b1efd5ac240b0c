"""What the tests of the pipelines share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tq3.plan.plan import Task


@pytest.fixture
def set_block_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the blocks smaller, so that a small tensor has several."""
    return lambda n_bytes: monkeypatch.setattr(Task.blocks, "__defaults__", (n_bytes,))
