"""What must hold for any input whatever. Fuzzers and hypothesis ask the same questions.

A property returns, or raises for a fault of ours: AssertionError or what should not have escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from safetensors import SafetensorError, deserialize

from support.factories import FakeFiles
from tq3.cli import tables
from tq3.errors import BadInput, Tq3Error
from tq3.format.checkpoint import Checkpoint, read_checkpoint
from tq3.format.files import read_text
from tq3.format.header import FLOATS, Header, read_header
from tq3.format.json_text import insert_key, remove_key
from tq3.format.recipe import Recipe
from tq3.pipelines.describe import describe
from tq3.plan.compressing import plan_compression
from tq3.plan.plan import Plan
from tq3.plan.restoring import plan_restoration, read_tq_config
from tq3.plan.roles import expert_set_of
from tq3.storage.sidecars import choose_sidecars

# What we refuse and the safetensors library takes: it ignores keys it does not know, believes the
# last of two tensors of one name, and takes sizes and dimensions that no checkpoint has.
STRICTER = (
    "does not have just dtype",
    "twice",
    "larger than any file",
    "not a list of at most 64",
    "not a pair of whole numbers",
)
# Types of matrices that no format of quantised weights uses for its codes.
ORDINARY = (*FLOATS, "F64", "C64", "I64", "U64", "BOOL")


def check_header(content: bytes) -> None:
    """Read or refused by us; what we read, the safetensors library reads just so."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(content)
        return content[offset : offset + length]

    try:
        header = read_header(read, len(content), "x.safetensors")
    except BadInput as error:
        _check_refusal(error, content)
        return
    if b"-0" not in content:  # JSON's integer, but a float to the library
        _check_same(header, content)


def check_folder(files: dict[str, bytes]) -> None:
    """Each command's way up to the first weight: it goes through, or ends with our own error."""
    folder: Any = FakeFiles(files)  # all of a Source that is asked for here
    with suppress(Tq3Error):
        checkpoint = read_checkpoint(folder)
        _check_side_files(folder, checkpoint)
        check_fates(checkpoint, Recipe())
        with suppress(Tq3Error):
            _check_plan(plan_compression(checkpoint, Recipe()))
            _check_config(folder)
        _check_restoration(folder, checkpoint)
    with suppress(Tq3Error):
        description = describe(folder, Recipe(), workers=2)
        json.dumps(description.to_dict())
        list(tables.of_description(description, tensors=True))


def check_fates(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """No tensor is damaged by its plan, whatever its name, type and shape; or it is refused."""
    try:
        plan = plan_compression(checkpoint, recipe)
    except Tq3Error:
        return
    widths: dict[str, set[int | None]] = {}
    for task in plan.tasks:
        info = task.sources[0].info
        is_matrix = len(info.shape) > 1 and info.name.endswith(".weight")
        assert not is_matrix or info.dtype in ORDINARY, f"{info} is no ordinary matrix"
        if task.layout:
            assert info.dtype in FLOATS
            assert task.bytes_out < task.bytes_in, f"{info} grows"
        elif info.dtype == "F32" and (len(info.shape) < 2 or info.n_elements <= 2**20):
            assert task.targets == (info,), f"{info} loses bits"
        elif info.dtype not in FLOATS:
            assert task.targets == (info,), f"{info} is changed"
        if key := expert_set_of(info.name):
            widths.setdefault(key, set()).add(task.layout.bits if task.layout else None)
    assert all(len(alike) == 1 for alike in widths.values()), "experts that hosts join differ"


def _check_side_files(folder: FakeFiles, checkpoint: Checkpoint) -> None:
    """Each file is copied once or left out with a reason, and none takes a shard's name."""
    rest = set(folder.tree()) - set(checkpoint.files)
    found = choose_sidecars(rest, ())
    assert found.copied.keys() | found.left_out.keys() == rest
    assert not found.copied.keys() & found.left_out.keys()
    assert all(found.left_out.values())
    assert not any(name.endswith(".safetensors") and "/" not in name for name in found.copied)


def _check_refusal(error: BadInput, content: bytes) -> None:
    sentence = str(error)
    assert sentence.startswith("x.safetensors: ")
    assert len(sentence) < 2000
    try:
        deserialize(content)
    except (SafetensorError, ValueError):
        return
    assert any(words in sentence for words in STRICTER), f"the library takes it: {sentence}"


def _check_same(header: Header, content: bytes) -> None:
    known = dict(deserialize(content))
    assert known.keys() == header.tensors.keys()
    for name, info in header.tensors.items():
        assert (known[name]["dtype"], tuple(known[name]["shape"])) == (info.dtype, info.shape)
        start = header.offsets[name]
        assert known[name]["data"] == content[start : start + info.n_bytes]


def _check_restoration(folder: FakeFiles, checkpoint: Checkpoint) -> None:
    with suppress(Tq3Error):
        config = read_tq_config(folder, checkpoint.config)
        assert config.to_json()
        _check_plan(plan_restoration(checkpoint, config, "BF16", 1000))


def _check_config(folder: FakeFiles) -> None:
    """config.json of what could be compressed gains its key."""
    if folder.has("config.json"):
        plain = remove_key(read_text(folder, "config.json"), "quantization_config")
        longer = json.loads(insert_key(plain, "quantization_config", {"bits": 3}))
        assert longer["quantization_config"] == {"bits": 3}


def _reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda at, n: content[at : at + n]


def _check_plan(plan: Plan) -> None:
    """The headers that would be written are sound."""
    for shard in plan.shards:
        header = shard.header
        found = read_header(_reader(header), shard.file_bytes, "out")
        assert found.offsets == shard.offsets
    json.dumps(plan.index).encode()
