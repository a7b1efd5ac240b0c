"""Which files of a folder hold its weights: a single one, or those that an index names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tq3.errors import BadInput
from tq3.format.files import Files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MERGE = "merge it into its base model first (merge_and_unload), and compress what that gives"
# Of PEFT and of MLX; they may hold whole matrices, too.
_ADAPTERS = {
    *("adapter_model.safetensors", "adapter_model.bin"),
    *("adapters.safetensors", "adapters.npz"),
}
_PIPELINE = "model_index.json"
SUFFIX = ".safetensors"
# Of a variant in between: model.safetensors.index.fp16.json.
_ANY_INDEX = re.compile(r"\.index(\.[\w-]{1,50})?\.json\Z", re.IGNORECASE)

# The JSON object in a file.
ReadObject = Callable[[str], Mapping[str, Any]]


def indexed(name: str) -> str | None:
    """The name that an index is of, such as model.safetensors; None if it is no index."""
    found = _ANY_INDEX.search(name)
    return name[: found.start()] if found else None


def choose_index(names: Sequence[str], read: ReadObject) -> str | None:
    """The index among the files at the top of a folder, if there is one. Raises BadInput.

    That of the usual name; or, without a single file of the usual name, the one that names exactly
    the safetensors files there: consolidated.safetensors.index.json, say.
    """
    if INDEX in names or SINGLE in names:
        return INDEX if INDEX in names else None
    others = [name for name in names if (indexed(name) or "").endswith(SUFFIX)]
    there = {name for name in names if name.endswith(SUFFIX)}
    named = {index: _named_files(read(index)) for index in others}
    exact = [index for index in others if named[index] == there]
    if len(exact) == 1:
        return exact[0]
    if len(others) == 1 and (not named[others[0]] or not named[others[0]] < there):
        return others[0]  # with files that are missing, or none: reading it says so
    if others:
        raise BadInput(
            "no telling which files belong together",
            file=others[0],
            found=f"{', '.join(others[:3])} beside {', '.join(sorted(there)[:3])}",
            expected=f"one index that names every {SUFFIX} file there",
            fix=f"copy the index that is meant to {INDEX}",
        )
    return None


def _named_files(index: Mapping[str, Any]) -> set[str]:
    weight_map = index.get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else ()
    return {plain_path(file) for file in files if isinstance(file, str)}


def entries_of(index: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Tensor -> what the index of this name says to be its file. Raises BadInput."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput("weight_map is not an object with entries", file=name)
    return weight_map


def plain_path(file: str) -> str:
    """The path of a file as folders list it: "./a" is "a"."""
    return str(PurePosixPath(file))


def is_single_taken(names: Sequence[str], indexed_files: Collection[str]) -> bool:
    """Whether the single file of the usual name is the checkpoint, as for hosts.

    names: of the files there
    indexed_files: those that an index names
    """
    return SINGLE in names and SINGLE not in indexed_files


def read_weight_map(files: Files, index: str, read: ReadObject) -> dict[str, str]:
    """Tensor -> file, as the index says. Raises BadInput.

    Nothing, where a single file of the usual name is there, and no file that the index names.
    """
    weight_map = entries_of(read(index), index)
    has_single = files.has(SINGLE)
    plain: dict[str, str] = {}  # each spelling is looked for once
    missing: dict[str, str] = {}
    for tensor, file in weight_map.items():
        if isinstance(file, str) and (file in plain or file in missing):
            continue
        if isinstance(file, str) and files.has(file):
            plain[file] = plain_path(file)
        elif isinstance(file, str) and has_single:
            missing[file] = tensor
        else:
            raise _missing(index, tensor, file, "fetch the missing file")
    if missing and plain:
        file, tensor = next(iter(missing.items()))
        away = f"fetch it, or move {index} and its files away: {SINGLE} is there, too"
        raise _missing(index, tensor, file, away)
    return {} if missing else {tensor: plain[file] for tensor, file in weight_map.items()}


def _missing(index: str, tensor: str, file: object, fix: str) -> BadInput:
    return BadInput(
        "the index names a file that is not in the folder",
        file=index,
        tensor=tensor,
        found="an empty name" if file == "" else file,
        fix=fix,
    )


def single_file(files: Files, names: Sequence[str]) -> str:
    """The one file with weights in a folder without an index. Raises BadInput."""
    candidates = [name for name in names if name.endswith(SUFFIX)]
    if SINGLE in candidates:
        return SINGLE
    if _PIPELINE in names:
        raise _pipeline(files)
    adapters = _ADAPTERS.intersection(names)
    if adapters and adapters.issuperset(candidates):
        raise adapter(files.label, ", ".join(sorted(adapters)))
    plain = [name for name in candidates if all(_is_variant(each, name) for each in candidates)]
    if plain:
        return plain[0]
    if candidates:
        raise BadInput(
            "several .safetensors files and no index says which belong together",
            file=files.label,
            found=", ".join(candidates[:3]),
            expected=INDEX,
            fix="put the files of one model into a folder of their own",
        )
    below = _folders_of_weights(files)
    raise BadInput(
        "no safetensors weights in this folder",
        file=files.label,
        found=", ".join(names[:5]) or "no files",
        expected=f"{SINGLE} or {INDEX}",
        fix=f"give the folder of the model: {', '.join(below)}"
        if below
        else "convert other formats with Transformers' save_pretrained first",
    )


def _is_variant(name: str, plain: str) -> bool:
    """Whether `name` is the file `plain`, or one of its variants such as x.fp16.safetensors."""
    return name.startswith(f"{plain.removesuffix(SUFFIX)}.")


def _folders_of_weights(files: Files) -> list[str]:
    paths = (PurePosixPath(name).parts for name in files.tree() if name.endswith(SUFFIX))
    return sorted({parts[0] for parts in paths if len(parts) == 2})


def adapter(file: str, found: str) -> BadInput:
    """The refusal of weights that only change those of another model."""
    return BadInput(
        "an adapter, not a model", file=file, found=found, expected="a model's weights", fix=MERGE
    )


def _pipeline(files: Files) -> BadInput:
    folders = _folders_of_weights(files)
    return BadInput(
        "a pipeline of several models",
        file=files.label,
        found=_PIPELINE,
        expected="the folder of one model",
        fix=f"give one of its folders on this machine: {', '.join(folders)}"
        if folders
        else "give one of its folders; none holds safetensors weights yet",
    )
