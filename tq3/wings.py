"""Parts of tq3 that need packages which not everybody has: imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tq3.errors import UsageError

_PACKAGES = ("accelerate", "matplotlib", "safetensors", "torch", "transformers")


def wing(part: str, module: str, what: str) -> Any:
    """A module of tq3.evaluation or tq3.calibration. Raises UsageError for a missing package.

    what: asks for it, as the user reads it
    """
    try:
        return import_module(f"tq3.{part}.{module}")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise UsageError(
            f"{what} needs the package {error.name}", fix="pip install 'tq3[eval]'"
        ) from error
