"""The tensors of a checkpoint folder, from its listing, index and headers; not a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from tq3.errors import BadInput
from tq3.format import config as tq_config
from tq3.format.header import TensorInfo, read_header
from tq3.format.json_reading import parse_object
from tq3.format.layout import NORMS, PACKED

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
CONTINUE = "the tq3 command that began it goes on from there; or delete the folder"
_MAX_JSON_FILE = 128 * 2**20


class Files(Protocol):
    """A folder of files, wherever it lies."""

    label: str

    def names(self) -> list[str]:
        """The files at the top of the folder, sorted."""

    def has(self, name: str) -> bool:
        """Whether `name` is a file in the folder or below it: never one outside."""

    def has_unfinished_run(self) -> bool:
        """Whether tq3 began to write here and did not come to the end."""

    def size(self, name: str) -> int: ...

    def stamp(self, name: str) -> str:
        """A text that changes when the file does."""

    def expect(self, names: Iterable[str]) -> None:
        """The headers of these files will be asked for next, one after the other."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes; raises StorageError or NetworkError when the file has fewer."""


class Origin(NamedTuple):
    """Whose weights these are: a model's name, and its revision where it has one."""

    model: str
    revision: str | None


class Source(Files, Protocol):
    """Files that are read to the last byte, by any number of threads.

    folder: where they lie on this machine; None: elsewhere
    is_pinned: whether the content can't change while its stamp stays
    connections: threads that it takes to keep it busy
    n_received: bytes that came over a network; None: there is none
    """

    @property
    def folder(self) -> Path | None: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def is_pinned(self) -> bool: ...
    @property
    def connections(self) -> int: ...
    @property
    def n_received(self) -> int | None: ...

    def tree(self) -> list[str]:
        """Every file, as sorted relative paths with forward slashes."""

    def place(self, name: str) -> str:
        """The file as messages name it."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raises StorageError or NetworkError."""

    def parts(self, name: str) -> Iterator[bytes]:
        """The whole file, piece by piece."""

    def give_up(self) -> None:
        """Have reads under way end soon, by any error: nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor and where its bytes lie."""

    info: TensorInfo
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors in the order of the disk, and config.json (empty where there is none).

    stamps: of each weight file, before its header was read
    """

    tensors: tuple[Located, ...]
    stamps: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def weight_files(self) -> tuple[str, ...]:
        return tuple(self.stamps)


def read_checkpoint(files: Files) -> Checkpoint:
    """Read index and headers. Raises BadInput for anything that contradicts itself."""
    names = files.names()
    if not _could_be_whole(names):
        refuse_unfinished(files)
    weight_map = _weight_map(files, names)
    weight_files = tuple(sorted(set(weight_map.values()))) or (_single_file(files, names),)
    stamps = {file: files.stamp(file) for file in weight_files}
    files.expect(weight_files)
    tensors = tuple(tensor for file in weight_files for tensor in read_tensors(files, file))
    _check_unique(tensors)
    _check_index(weight_map, tensors)
    config = read_object(files, CONFIG) if files.has(CONFIG) else {}
    return Checkpoint(tensors, stamps, config)


def refuse_unfinished(files: Files) -> None:
    """Raise BadInput where a run of tq3 was interrupted, and no TQ3 checkpoint is beside it."""
    if files.has_unfinished_run() and not files.has(tq_config.FILE_NAME):
        raise BadInput("an unfinished run", file=files.label, fix=CONTINUE)


def _could_be_whole(names: list[str]) -> bool:
    """A run that shall replace a checkpoint may be interrupted while that one is still there."""
    weights = any(name.endswith(".safetensors") for name in names)
    return tq_config.FILE_NAME in names or (weights and CONFIG in names)


def read_object(files: Files, name: str) -> dict[str, Any]:
    """A JSON object from the folder. Raises BadInput."""
    # People edit config.json by hand; of a key that is there twice every host takes the last.
    return parse_object(read_text(files, name), name, unique=name != CONFIG)


def read_text(files: Files, name: str) -> str:
    """A text file of a size that a JSON file may have. Raises BadInput."""
    size = files.size(name)
    if size > _MAX_JSON_FILE:
        raise BadInput(
            "too large for a JSON file",
            file=name,
            found=f"{size} bytes",
            expected=f"at most {_MAX_JSON_FILE}",
        )
    try:
        return files.read(name, 0, size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: {error}", file=name) from None


def refuse_quantised(
    checkpoint: Checkpoint, fix: str = "compress the original, unquantised checkpoint"
) -> None:
    """Raise BadInput when the weights are quantised already: coding them again would lose twice."""
    found = _quantised_as(checkpoint)
    if found:
        raise BadInput(
            "the source is already quantised",
            file=found.file,
            found=found.text,
            expected="BF16, F16 or F32 weights",
            fix=fix,
        )


def _weight_map(files: Files, names: list[str]) -> dict[str, str]:
    """The index's tensor -> file, or nothing: a single file comes first, as in Transformers."""
    if SINGLE in names or INDEX not in names:
        return {}
    weight_map = read_object(files, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput("weight_map is not an object with entries", file=INDEX)
    plain: dict[str, str] = {}  # "./a" and "a" are one file; each spelling is looked for once
    for tensor, file in weight_map.items():
        if isinstance(file, str) and file in plain:
            continue
        if not isinstance(file, str) or not files.has(file):
            raise BadInput(
                "the index names a file that is not in the folder",
                file=INDEX,
                tensor=tensor,
                found="an empty name" if file == "" else file,
                fix="fetch the missing file",
            )
        plain[file] = str(PurePosixPath(file))
    return {tensor: plain[file] for tensor, file in weight_map.items()}


def _single_file(files: Files, names: list[str]) -> str:
    candidates = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in candidates:
        return SINGLE
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise BadInput(
            "several .safetensors files and no index says which belong together",
            file=files.label,
            found=", ".join(candidates[:3]),
            expected=INDEX,
        )
    raise BadInput(
        "no safetensors weights in this folder",
        file=files.label,
        found=", ".join(names[:5]) or "no files",
        expected=f"{SINGLE} or {INDEX}",
        fix="convert other formats with Transformers' save_pretrained first",
    )


def read_tensors(files: Files, file: str) -> list[Located]:
    """The tensors of one weight file, in the order of the disk. Raises BadInput."""
    header = read_header(
        lambda offset, length: files.read(file, offset, length), files.size(file), file
    )
    ordered = sorted(header.offsets.items(), key=lambda item: (item[1], item[0]))
    return [Located(header.tensors[name], file, offset) for name, offset in ordered]


def _check_unique(tensors: tuple[Located, ...]) -> None:
    seen: dict[str, str] = {}
    for tensor in tensors:
        name = tensor.info.name
        if name in seen:
            raise BadInput(f"also in {seen[name]}", file=tensor.file, tensor=name)
        seen[name] = tensor.file


def _check_index(weight_map: Mapping[str, str], tensors: tuple[Located, ...]) -> None:
    present = {tensor.info.name: tensor.file for tensor in tensors}
    for name, file in weight_map.items():
        if present.get(name) != file:
            raise BadInput(
                "the index names a tensor that the file does not have",
                file=file,
                tensor=name,
                found=present.get(name, "no such tensor"),
                fix="fetch index and shards again, from one revision",
            )


class _Quantised(NamedTuple):
    file: str
    text: str


def _quantised_as(checkpoint: Checkpoint) -> _Quantised | None:
    names = {tensor.info.name: tensor for tensor in checkpoint.tensors}  # in order, for the message
    partners = (
        ((PACKED,), "a TQ3 checkpoint (.tq_packed)"),
        ((NORMS,), "a TQ3 checkpoint (.tq_norms)"),
        (("_blocks", "_scales"), "MXFP4 (_blocks and _scales)"),
        ((".weight_scale_inv",), "block-wise FP8 (weight_scale_inv)"),
        ((".weight_scale",), "FP8 or compressed-tensors (weight_scale)"),
        ((".qweight",), "GPTQ or AWQ (qweight)"),
        ((".weight.absmax",), "bitsandbytes (weight.absmax)"),
    )
    for suffixes, label in partners:
        first, *others = suffixes
        for name, tensor in names.items():
            stem = name.removesuffix(first)
            if stem != name and all(stem + other in names for other in others):
                return _Quantised(tensor.file, f"{label}, for example {name!r}")
    for config in (checkpoint.config, checkpoint.config.get("text_config")):
        declared = config.get("quantization_config") if isinstance(config, dict) else None
        if declared is not None:
            method = declared.get("quant_method") if isinstance(declared, dict) else declared
            return _Quantised(CONFIG, f"quantization_config with quant_method {method!r}")
    return None
