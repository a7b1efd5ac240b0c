"""Which files travel along with the weights, and which are left behind and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from tq3.plan.weight_files import indexed
from tq3.storage.drafts import WORK_FOLDER

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx"),
    *(".onnx_data", ".tflite", ".mlmodel", ".mlpackage", ".ot", ".npz", ".nemo", ".pkl", ".pickle"),
)
# A checkpoint's card on the Hub, and in a TQ3 checkpoint the card of the model it was made from:
# there README.md is the compressed model's own, which people write and edit.
CARD = "README.md"
SOURCE_CARD = "README.source.md"
_CACHES = ("__pycache__", "node_modules")


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What is copied byte for byte, relative path -> name of the copy; what is left out -> why."""

    copied: dict[str, str]
    left_out: dict[str, str]


def choose_sidecars(
    names: Iterable[str], accounted: Iterable[str], renamed: Mapping[str, str] | None = None
) -> Sidecars:
    """Split the names of `LocalFiles.tree`.

    accounted: what the caller writes or replaces itself
    renamed: file -> name of its copy; what has that name already stays behind
    A nested folder that holds weights of any format is left out whole: what lies beside them
    belongs to them.
    """
    known = set(accounted)
    rest = [name for name in names if name not in known]
    weight_folders = {
        PurePosixPath(name).parts[0] for name in rest if "/" in name and is_weight_file(name)
    }
    left_out = {name: why for name in rest if (why := _why_left_out(name, weight_folders))}
    copies = {name: copy for name, copy in (renamed or {}).items() if name in rest}
    left_out |= {copy: f"{name} takes its name" for name, copy in copies.items() if copy in rest}
    return Sidecars({n: copies.get(n, n) for n in rest if n not in left_out}, left_out)


def _why_left_out(name: str, weight_folders: set[str]) -> str | None:
    parts = PurePosixPath(name).parts
    reasons = {
        "belongs to git": any(part.startswith(".git") for part in parts),
        "a cache": any(part in _CACHES or part.startswith(".cache") for part in parts),
        "a draft of another run": WORK_FOLDER in parts,
        "a link to a folder": name.endswith("/"),
        "weights that are not part of this checkpoint": is_weight_file(name),
        "in a folder of other weights": len(parts) > 1 and parts[0] in weight_folders,
    }
    return next((why for why, applies in reasons.items() if applies), None)


def is_weight_file(name: str) -> bool:
    """Whether a file holds weights, or is the index of some, in any format."""
    stem = indexed(name) or name
    return any(stem.endswith(suffix) for suffix in _WEIGHT_SUFFIXES)
