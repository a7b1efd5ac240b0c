"""A processor that modules take for a GPU with kernels."""

from __future__ import annotations

import pytest
from emulated import Device

from tq3.runtime.cuda import support


@pytest.fixture
def gpu(monkeypatch):
    """The emulated device, in the place of every device's kernels."""
    device = Device()
    monkeypatch.setattr(support, "launcher", lambda _: device)
    return device
