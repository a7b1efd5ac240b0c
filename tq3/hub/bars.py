"""The progress bars that huggingface_hub draws by itself, for as long as they are not wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)


@contextmanager
def bars(*, shown: bool) -> Iterator[None]:
    """Let them be drawn in the block or not; those that the user switched off stay off."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
