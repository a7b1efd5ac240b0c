"""A file of second moments, read block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec.calibrated import BLOCK
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.files import Origin
from tq3.format.header import Header, read_header
from tq3.format.manifest import Digest
from tq3.format.options import StrPath
from tq3.format.recipe import CALIBRATED
from tq3.format.weight_files import SUFFIX
from tq3.moments.facts import ENOUGH_TOKENS, REMAKE, from_metadata
from tq3.plan.plan import Plan
from tq3.storage.local import LocalFiles
from tq3.units import counted

# Of the facts, in tq_config.json.
_RECORDED = ("text", "tokens", "context", "digest", "damping", "model", "revision")
_CHUNK_BYTES = 8 * 2**20


class Moments:
    """The moments of all inputs: E[x x'] in blocks of columns, on the diagonal alone.

    facts: whose moments they are, and of which tokens
    readers: tensor of the source -> names of inputs, one or one for each matrix of a stack
    tokens: input -> tokens that its moments are the mean of
    """

    def __init__(self, files: LocalFiles, name: str) -> None:
        """Read the header. Raises BadInput or StorageError."""
        self._files, self._name = files, name
        self.file = files.place(name)
        header = self._header()
        self.facts, self.readers, self.tokens = from_metadata(header.metadata, self.file)
        self._tensors = header.tensors
        self._offsets = header.offsets
        for reader, inputs in self.readers.items():
            for each in inputs:
                if each not in self._tensors:
                    raise BadInput(
                        "names moments that are not there",
                        file=self.file,
                        tensor=reader,
                        found=each,
                        fix=REMAKE,
                    )

    def _header(self) -> Header:
        files, name = self._files, self._name
        try:
            return read_header(lambda *where: files.read(name, *where), files.size(name), self.file)
        except BadInput as error:
            raise BadInput.retold(
                error, "not a file of moments", file=self.file, fix=REMAKE
            ) from None

    @cached_property
    def digest(self) -> str:
        """Of all bytes of the file, which are read for it. Raises StorageError."""
        state, size = Digest(), self._files.size(self._name)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for start in range(0, size, _CHUNK_BYTES):
            part = buffer[: min(_CHUNK_BYTES, size - start)]
            self._files.read_into(self._name, start, part)
            state.update(part)
        return state.piece().digest

    @property
    def record(self) -> dict[str, Any]:
        """What tq_config.json says of them."""
        facts = {key: value for key, value in self.facts.to_record().items() if key in _RECORDED}
        return {**facts, "moments": self.digest}

    def check(self, tensor: Located, group: int) -> None:
        """Raise BadInput where a reader's moments don't fit its shape, or groups of this size."""
        *stack, _, columns = tensor.info.shape
        inputs = self.readers[tensor.info.name]
        for each in inputs:
            info = self._tensors[each]
            count, block = (info.shape[0], info.shape[-1]) if len(info.shape) == 3 else (0, 1)
            fits = info.shape[1:] == (block, block) and count == -(-columns // block)
            in_groups = block <= BLOCK and (count == 1 or block % group == 0)
            if info.dtype != "F32":
                raise BadInput(
                    "moments of a type that is not read",
                    file=self.file,
                    tensor=each,
                    found=info.dtype,
                    expected="F32",
                    fix=REMAKE,
                )
            if not fits or not in_groups or len(inputs) not in (1, prod(stack)):
                raise BadInput(
                    "moments that don't fit the tensor",
                    file=self.file,
                    tensor=tensor.info.name,
                    found=f"{list(info.shape)} for {counted(len(inputs), 'input')}",
                    expected=f"blocks of at most {BLOCK} columns, whole groups, of {columns}",
                    fix="calibrate the checkpoint that is to be compressed",
                )

    def damping(self, name: str) -> float:
        """What the diagonal of an input gets, as a part of its mean: more after few tokens."""
        return self.facts.damping * max(1.0, ENOUGH_TOKENS / self.tokens[name])

    def block_columns(self, name: str) -> int:
        """Columns of a block, of which only the last one may have fewer."""
        return self._tensors[name].shape[-1]

    def blocks(self, name: str, columns: int) -> Iterator[NDArray[np.float32]]:
        """The blocks of an input of so many columns, each as large as it is.  (cols, cols)"""
        size = self.block_columns(name)
        for number in range(self._tensors[name].shape[0]):
            yield self.block(name, number, min(size, columns - number * size))

    def block(self, name: str, number: int, columns: int) -> NDArray[np.float32]:
        """One block, without what pads it. Raises BadInput for what is no number."""
        size = self.block_columns(name)
        read = np.empty((size, size), np.float32)
        at = self._offsets[name] + number * read.nbytes
        self._files.read_into(self._name, at, read.reshape(-1).view(np.uint8).data)
        if not np.isfinite(read).all():
            raise BadInput("not a finite moment", file=self.file, tensor=name, fix=REMAKE)
        return read[:columns, :columns]


def is_moments_file(path: StrPath) -> bool:
    """Whether this names a file of moments, by its suffix, and not a text."""
    return os.fspath(path).endswith(SUFFIX)


def of_others(
    moments: Moments, checkpoint: Checkpoint, origin: Origin, plan: Plan
) -> Iterator[str]:
    """Sentences on moments of another model, and on tensors that have none.

    origin: whose weights the checkpoint has; a folder goes by its name alone
    """
    facts = moments.facts
    theirs = Origin(facts.model, facts.revision)
    if facts.source != source_digest(checkpoint):
        yield f"the moments are those of {facts.model}, whose tensors are not all like this one's"
    elif _differ(theirs, origin):
        yield (
            f"the moments are those of {_in_words(theirs)}, and this is {_in_words(origin)}: "
            "its tensors have the same names and shapes, maybe other weights"
        )
    without = [each.name for each in plan.tasks if each.layout and each.scale != CALIBRATED]
    if without:
        yield (
            f"{counted(len(without), 'tensor')} that {'are' if without[1:] else 'is'} compressed "
            f"without moments, as the first, {without[0]}"
        )


def _differ(one: Origin, other: Origin) -> bool:
    """Whether the names say that these are two models, or two revisions of one."""
    names = one.model, other.model
    if not all("/" in name for name in names):  # a folder doesn't say whose its model is
        names = names[0].rpartition("/")[2], names[1].rpartition("/")[2]
    two_revisions = one.revision and other.revision and one.revision != other.revision
    return names[0] != names[1] or bool(two_revisions)


def _in_words(origin: Origin) -> str:
    return f"{origin.model} at {origin.revision}" if origin.revision else origin.model


@contextmanager
def open_moments(path: StrPath) -> Iterator[Moments]:
    """The file while it is open. Raises BadInput or StorageError."""
    file = Path(os.fspath(path))
    with LocalFiles(file.parent) as files:
        if not files.has(file.name):
            raise BadInput("no such file", file=path, fix="write it with `tq3 calibrate`")
        yield Moments(files, file.name)


def moments_or_none(path: StrPath | None) -> AbstractContextManager[Moments | None]:
    """`open_moments`, where there is a path."""
    return nullcontext() if path is None else open_moments(path)


def source_digest(checkpoint: Checkpoint) -> str:
    """Of names, types and shapes of all tensors, in whatever files they lie."""
    state = Digest()
    for line in sorted(_lines(checkpoint.tensors)):
        state.update(line.encode())
    return state.piece().digest


def _lines(tensors: Sequence[Located]) -> Iterator[str]:
    for tensor in tensors:
        info = tensor.nominal
        yield f"{info.name!r} {info.dtype} {info.shape}\n"
