"""The tensors of a checkpoint folder, from its listing, index and headers; not a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tq3.errors import BadInput
from tq3.format import config as tq_config
from tq3.format.files import CONFIG, Files, read_object
from tq3.format.header import TensorInfo, read_header
from tq3.format.layout import exchanged
from tq3.format.quantised import Encoding
from tq3.format.weight_files import (
    SINGLE,
    SUFFIX,
    choose_index,
    is_single_taken,
    read_weight_map,
    single_file,
)
from tq3.units import counted

# Places of tensors that lie in no file as they are read: no file is as large. Each kind lies behind
# the ones that it may be read from.
FIRST_VIRTUAL, FIRST_TURNED, FIRST_OF_HOST = 2**62, 2**63, 2**64
CONTINUE = "the tq3 command that began it goes on from there; or delete the folder"
FETCH_TOGETHER = "fetch index and shards again, from one revision"


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor and where its bytes lie.

    pieces: what makes a virtual tensor, which is read as float32 and lies in no file as it is
    transposed: whether hosts have the last two dimensions of this stack of experts exchanged
    """

    info: TensorInfo
    file: str
    offset: int
    pieces: Pieces | None = None
    transposed: bool = False

    @property
    def nominal(self) -> TensorInfo:
        """The tensor as plans see it: what was quantised counts as BF16, as its model does."""
        return replace(self.info, dtype="BF16") if self.pieces else self.info

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes in the source's files."""
        return self.pieces.n_bytes if self.pieces else self.info.n_bytes

    @property
    def of_host(self) -> Located:
        """The tensor as hosts have it: itself, or a view that a `TurnedSource` reads."""
        return self.turned(FIRST_OF_HOST) if self.transposed else self

    def turned(self, first: int) -> Located:
        """A view with the last two dimensions exchanged, whose place lies behind `first`."""
        info = replace(self.info, shape=exchanged(self.info.shape))
        is_transposed = not self.transposed
        return replace(self, info=info, offset=first + self.offset, transposed=is_transposed)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tensors of a source that make one virtual tensor, in whatever files they lie.

    width: rows and columns in I64, with which the shape by codes and scales has to agree
    """

    encoding: Encoding
    codes: Located
    scales: Located
    global_scale: Located | None = None
    zero_points: Located | None = None
    width: Located | None = None

    @property
    def all(self) -> tuple[Located, ...]:
        some = (self.codes, self.scales, self.global_scale, self.zero_points, self.width)
        return tuple(piece for piece in some if piece)

    @property
    def n_bytes(self) -> int:
        return sum(piece.n_bytes for piece in self.all)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors in the order of the disk, and config.json (empty where there is none).

    stamps: of each weight file, before its header was read
    index: the file that names the weight files, where one does
    copies: weight files that hold the same tensors once more, and were not taken
    notices: what the user should know of the choice of these files
    source_quantization: what is recorded of a source that is shown without it
    """

    tensors: tuple[Located, ...]
    stamps: Mapping[str, str]
    config: Mapping[str, Any]
    index: str | None = None
    copies: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    source_quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weight_files(self) -> tuple[str, ...]:
        return tuple(self.stamps)

    @property
    def files(self) -> tuple[str, ...]:
        """The weight files and their index."""
        return (*self.stamps, *([self.index] if self.index else []))


def read_checkpoint(files: Files) -> Checkpoint:
    """Read index and headers. Raises BadInput for anything that contradicts itself."""
    names = files.names()
    if not _could_be_whole(names):
        refuse_unfinished(files)
    read = partial(read_object, files)
    index = choose_index(names, read)
    weight_map = read_weight_map(files, index, read) if index else {}
    weight_files = tuple(sorted(set(weight_map.values()))) or (single_file(files, names),)
    tensors, stamps = _read_files(files, weight_files)
    for error in misplaced(weight_map, tensors):
        raise error
    copies: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    if is_single_taken(names, weight_files):
        alone, stamps_alone = _read_files(files, (SINGLE,))
        notices = (_choose_single(files, alone, tensors),)
        tensors, stamps, copies = alone, stamps_alone, weight_files
    config = read_object(files, CONFIG) if files.has(CONFIG) else {}
    index = index if weight_map and not copies else None
    return Checkpoint(tensors, stamps, config, index, copies, notices)


def _read_files(files: Files, names: tuple[str, ...]) -> tuple[tuple[Located, ...], dict[str, str]]:
    """The tensors of these files, each in one of them, and the files' stamps."""
    stamps = {name: files.stamp(name) for name in names}
    files.expect(names)
    tensors = tuple(tensor for name in names for tensor in read_tensors(files, name))
    for error in repeated(tensors):
        raise error
    return tensors, stamps


def _choose_single(files: Files, alone: tuple[Located, ...], sharded: tuple[Located, ...]) -> str:
    """A notice that the single file was taken, and not the shards that are there, too.

    Raises BadInput where they differ: one host would serve another model than the other.
    """
    one, other = ({each.info.name: each.info for each in some} for some in (alone, sharded))
    differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    first, last = sharded[0].file, sharded[-1].file
    shards = f"the shard {first}" if first == last else f"the shards {first} to {last}"
    if differing:
        raise BadInput(
            f"{SINGLE} lies beside shards with other tensors",
            file=files.label,
            tensor=differing[0],
            found=f"{counted(len(one), 'tensor')} in {SINGLE}, {len(other)} in {shards}",
            expected="one model",
            fix="move what is not meant out of the folder: "
            f"Transformers would take {SINGLE}, vLLM {shards}",
        )
    return (
        f"{SINGLE} is taken, as in Transformers, and not {shards}, which vLLM would take: "
        "names and shapes are the same, values were not compared"
    )


def refuse_unfinished(files: Files) -> None:
    """Raise BadInput where a run of tq3 was interrupted, and no TQ3 checkpoint is beside it."""
    if files.has_unfinished_run() and not files.has(tq_config.FILE_NAME):
        raise BadInput("an unfinished run", file=files.label, fix=CONTINUE)


def _could_be_whole(names: list[str]) -> bool:
    """A run that shall replace a checkpoint may be interrupted while that one is still there."""
    weights = any(name.endswith(SUFFIX) for name in names)
    return tq_config.FILE_NAME in names or (weights and CONFIG in names)


def read_tensors(files: Files, file: str) -> list[Located]:
    """The tensors of one weight file, in the order of the disk. Raises BadInput."""
    header = read_header(
        lambda offset, length: files.read(file, offset, length), files.size(file), file
    )
    ordered = sorted(header.offsets.items(), key=lambda item: (item[1], item[0]))
    return [Located(header.tensors[name], file, offset) for name, offset in ordered]


def repeated(tensors: Iterable[Located]) -> Iterator[BadInput]:
    """An error for each tensor that lies in a weight file before, too."""
    first: dict[str, str] = {}
    for tensor in tensors:
        name = tensor.info.name
        if name in first:
            yield BadInput(
                f"also in {first[name]}",
                file=tensor.file,
                tensor=name,
                found="two tensors of that name",
                expected="one of them",
                fix="fetch both files again, from one revision",
            )
        first.setdefault(name, tensor.file)


def misplaced(
    weight_map: Mapping[str, str], tensors: Iterable[Located], unread: Collection[str] = ()
) -> Iterator[BadInput]:
    """An error for each tensor that is not in the file that the index names.

    weight_map: tensor -> file, empty without an index; unread: files whose tensors nobody knows
    """
    places: dict[str, list[str]] = {}
    for tensor in tensors:
        places.setdefault(tensor.info.name, []).append(tensor.file)
    for name, file in weight_map.items():
        if file not in places.get(name, ()) and file not in unread:
            yield BadInput(
                "the index names a tensor that the file does not have",
                file=file,
                tensor=name,
                found=", ".join(places.get(name, ())) or "no such tensor",
                fix=FETCH_TOGETHER,
            )
