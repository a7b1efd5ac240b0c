"""Folders of weight files in memory, and what reading them gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.factories import FakeFiles, random_tensor, safetensors_bytes
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, read_checkpoint

INDEX = "model.safetensors.index.json"
ONE = random_tensor(2, 4)


def shard(*names: str) -> bytes:
    """A file with these tensors."""
    return safetensors_bytes(dict.fromkeys(names, ONE))


def index(**weight_map: Any) -> bytes:
    """An index; tensors named as Python names."""
    return json.dumps({"weight_map": weight_map}).encode()


def read(files: dict[str, bytes]) -> Checkpoint:
    """The checkpoint of a folder in memory."""
    return read_checkpoint(FakeFiles(files))


def names_of(files: dict[str, bytes]) -> list[str]:
    """Its tensors, in their order."""
    return [tensor.info.name for tensor in read(files).tensors]


def refusal(files: dict[str, bytes]) -> BadInput:
    """The error that ends the reading."""
    with pytest.raises(BadInput) as caught:
        read(files)
    return caught.value
