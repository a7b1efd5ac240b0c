"""What a file of second moments says of itself: whose, of which tokens, and who reads what.

docs/calibration.md has the layout, which other programs may read and write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tq3.errors import BadInput
from tq3.format.json_reading import parse_object

VERSION = 1
# Of which moments are made where nobody says how many.
CALIBRATION_TOKENS = 4096
# After fewer tokens moments are damped in proportion to what is missing: docs/calibration.md.
ENOUGH_TOKENS = 2048
KEY, READERS, TOKENS = "tq3.moments", "tq3.readers", "tq3.tokens"
REMAKE = "make the file anew with `tq3 calibrate`"


@dataclass(frozen=True, slots=True)
class Facts:
    """Whose second moments a file has, and of which tokens.

    text: "random", "self", or the name of a text file; tokens: how many went through the model
    context: tokens of a sequence; digest: SHA-256 of the ids of all tokens, as int64
    damping: what is added to the diagonal, as a part of its mean, before codes are chosen
    model, revision: whose inputs they are; source: digest of its tensors' names, types and shapes
    """

    text: str
    tokens: int
    context: int
    digest: str
    damping: float
    model: str
    revision: str | None
    source: str

    def to_record(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {"version": VERSION, **asdict(self)}


# Tensor of the source -> the names of the moments of what it multiplies: one, or one for each
# matrix of a stack.
Readers = Mapping[str, tuple[str, ...]]
# Name of moments -> tokens that they are the mean of.
Tokens = Mapping[str, int]


def to_metadata(facts: Facts, readers: Readers, tokens: Tokens) -> dict[str, str]:
    """The safetensors metadata of a file."""
    records = {KEY: facts.to_record(), READERS: dict(readers), TOKENS: dict(tokens)}
    return {key: json.dumps(record) for key, record in records.items()}


def from_metadata(metadata: Mapping[str, str], file: str) -> tuple[Facts, Readers, Tokens]:
    """The inverse of `to_metadata`. Raises BadInput."""
    for key in (KEY, READERS, TOKENS):
        if key not in metadata:
            raise BadInput(f"no {key}: not a file of second moments", file=file, fix=REMAKE)
    record, listed, tokens = (_parsed(metadata, key, file) for key in (KEY, READERS, TOKENS))
    if record.get("version") != VERSION:
        raise BadInput(
            "moments of another version",
            file=file,
            found=record.get("version"),
            expected=VERSION,
            fix=REMAKE,
        )
    found: dict[str, Any] = {field.name: record.get(field.name) for field in fields(Facts)}
    facts = Facts(**found)
    _check(facts, file)
    for name, inputs in listed.items():
        if not isinstance(inputs, list) or not all(tokens.get(each) for each in inputs):
            raise BadInput(
                f"{READERS} has no list of names of {TOKENS}", file=file, tensor=name, fix=REMAKE
            )
    for name, count in tokens.items():
        if type(count) is not int or count < 1:
            raise BadInput(f"{TOKENS}: no number", file=file, tensor=name, found=count, fix=REMAKE)
    return facts, {name: tuple(inputs) for name, inputs in listed.items()}, tokens


def _parsed(metadata: Mapping[str, str], key: str, file: str) -> dict[str, Any]:
    try:
        return parse_object(metadata[key], file)
    except BadInput as error:
        raise BadInput.retold(error, key, file=file, fix=REMAKE) from None


def _check(facts: Facts, file: str) -> None:
    kinds: dict[str, Any] = dict.fromkeys(("text", "digest", "model", "source"), str)
    kinds |= {"tokens": int, "context": int, "damping": (int, float), "revision": (str, type(None))}
    for name, kind in kinds.items():
        value = getattr(facts, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadInput(f"{KEY}: {name} has the wrong type", file=file, found=value, fix=REMAKE)
    if not 0 < facts.damping < float("inf"):
        raise BadInput(
            f"{KEY}: damping of no use",
            file=file,
            found=facts.damping,
            expected="a finite number above 0",
            fix=REMAKE,
        )
