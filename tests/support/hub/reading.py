"""A model on a Hub of our own, and how it is read in a hurry."""

from __future__ import annotations

from tq3.hub.files import HubFiles
from tq3.hub.options import HubOptions

MODEL = "some-org/some-model"
WEIGHTS = "model.safetensors"
HASTY = HubOptions(
    opening_patience_seconds=2.0,
    patience_seconds=2.0,
    stall_seconds=0.3,
    first_wait_seconds=0.01,
    longest_wait_seconds=0.1,
)
IMPATIENT = HubOptions(patience_seconds=0.3, first_wait_seconds=0.01, longest_wait_seconds=0.05)


def read(options: HubOptions = HASTY, name: str = WEIGHTS, start: int = 1000) -> bytes:
    """The file from `start` on, in one range."""
    with HubFiles(MODEL, options) as files:
        return files.read(name, start, files.size(name) - start)
