"""tq3: Hugging Face checkpoints in 2 to 4 bits a weight, on a CPU.

Names are imported when they are first used, so that `import tq3` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tq3.api import (
        compress,
        finish,
        inspect,
        parts,
        preview,
        push,
        restore,
        save_tq3_checkpoint,
        verify,
    )
    from tq3.errors import (
        BadInput,
        NetworkError,
        StorageError,
        Tq3Error,
        UsageError,
        VerificationFailed,
    )
    from tq3.format.recipe import Recipe
    from tq3.format.request import make_recipe
    from tq3.integrations.loading import load
    from tq3.pipelines.compress import compress_checkpoint
    from tq3.pipelines.finish import finish_parts
    from tq3.pipelines.restore import restore_checkpoint
    from tq3.publication.card import make_card
    from tq3.publication.push import push_checkpoint
    from tq3.verification.verify import verify_checkpoint

__version__: str
_HOMES = {
    "__version__": "tq3.version",
    "compress": "tq3.api",
    "finish": "tq3.api",
    "inspect": "tq3.api",
    "load": "tq3.integrations.loading",
    "parts": "tq3.api",
    "preview": "tq3.api",
    "push": "tq3.api",
    "restore": "tq3.api",
    "save_tq3_checkpoint": "tq3.api",
    "verify": "tq3.api",
    "compress_checkpoint": "tq3.pipelines.compress",
    "finish_parts": "tq3.pipelines.finish",
    "make_card": "tq3.publication.card",
    "push_checkpoint": "tq3.publication.push",
    "restore_checkpoint": "tq3.pipelines.restore",
    "verify_checkpoint": "tq3.verification.verify",
    "Recipe": "tq3.format.recipe",
    "make_recipe": "tq3.format.request",
    "Tq3Error": "tq3.errors",
    "UsageError": "tq3.errors",
    "BadInput": "tq3.errors",
    "NetworkError": "tq3.errors",
    "StorageError": "tq3.errors",
    "VerificationFailed": "tq3.errors",
}

__all__ = [
    "BadInput",
    "NetworkError",
    "Recipe",
    "StorageError",
    "Tq3Error",
    "UsageError",
    "VerificationFailed",
    "compress",
    "compress_checkpoint",
    "finish",
    "finish_parts",
    "inspect",
    "load",
    "make_card",
    "make_recipe",
    "parts",
    "preview",
    "push",
    "push_checkpoint",
    "restore",
    "restore_checkpoint",
    "save_tq3_checkpoint",
    "verify",
    "verify_checkpoint",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tq3' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
