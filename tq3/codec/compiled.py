"""The compiled modules, which may be absent, and must not be broken."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tq3.errors import StorageError, is_lack_of_memory

_REINSTALL = "install it again: pip install --force-reinstall --no-deps tq3"


@contextmanager
def unbroken(module: str) -> Iterator[None]:
    """Import the compiled `module` in the block, first or by what imports it.

    Raises ModuleNotFoundError where it was not built, StorageError where it can't be loaded: cut
    short, of another Python, without a library or a symbol that it needs.
    """
    spec = find_spec(module)
    file = spec.origin if spec else None
    if file and _is_cut(Path(file)):
        raise _broken(file, "a part of the file")
    try:
        yield
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        if file is None or is_lack_of_memory(error):
            raise
        raise _broken(file, str(error).removeprefix(f"{file}: ")) from error


def _broken(file: str, found: str) -> StorageError:
    return StorageError(
        "this compiled part of tq3 can't be loaded",
        file=file,
        found=found,
        fix=_REINSTALL,
        repeatable=False,
    )


def _is_cut(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections: the loader would die of SIGBUS."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):
        return False  # of another kind, which the loader may judge
    (start,) = struct.unpack_from("<Q", head, 0x28)
    size, number = struct.unpack_from("<HH", head, 0x3A)
    return path.stat().st_size < int(start) + int(size) * int(number)
