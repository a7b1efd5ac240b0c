"""The names of the formats, and what codes of each stand for."""

from __future__ import annotations

from tq3.errors import BadInput
from tq3.format.recipe import Code

FORMAT = "tq3_native"
# Of a checkpoint that has such codes. Readers of the one refuse the other.
FORMATS: dict[Code, str] = {"scalar": FORMAT, "trellis": "tq3_trellis"}


def code_of(found: object, file: str) -> Code:
    """What codes of the format `found` stand for. Raises BadInput for another format."""
    for code, name in FORMATS.items():
        if found == name:
            return code
    fix = "another package may have written it; pip install -U tq3 reads newer ones"
    raise BadInput("unknown format", file=file, found=found, expected=FORMAT, fix=fix)


def refuse_trellis(found: object, file: str) -> None:
    """Raise BadInput for a format that is not that of scalar codes."""
    if code_of(found, file) == "trellis":
        raise BadInput(
            "its codes are those of a trellis, which no host can serve packed yet",
            file=file,
            fix="`tq3 restore` makes an ordinary checkpoint of it, which every host loads",
        )
