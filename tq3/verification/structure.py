"""Listing, JSON files and headers of a TQ3 checkpoint, and every contradiction among them.

The readers stop at the first fault. Here each is called for one file or one tensor at a time, so
that a damaged one does not hide what is wrong with the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tq3.format import config as tq_config
from tq3.format import manifest as tq_manifest
from tq3.format.checkpoint import Checkpoint, Located, misplaced, read_tensors, repeated
from tq3.format.config import TqConfig, recipe_from_record
from tq3.format.files import CONFIG, Source, read_object, read_text
from tq3.format.layout import NORMS, SUFFIXES, GroupLayout
from tq3.format.manifest import Manifest, parse_manifest
from tq3.format.recipe import CALIBRATED
from tq3.format.recognition import quantization_config
from tq3.format.weight_files import (
    INDEX,
    SINGLE,
    SUFFIX,
    choose_index,
    entries_of,
    is_single_taken,
    plain_path,
)
from tq3.plan.quantised import says_nothing
from tq3.plan.restoring import find_tq_config, packed_layouts, record_faults
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.sidecars import is_loaded_by_hosts
from tq3.verification.checks import Fault, Faults

# Ends of the names of a compressed tensor's parts.
_PARTS = (*SUFFIXES.values(), NORMS)


@dataclass
class Structure:
    """A checkpoint as far as it can be read.

    index: the file that names the weight files, None where none does
    weight_map: its tensor -> file, None where it is missing or damaged
    unread: weight files without a sound header
    needs_manifest: whether its writer writes one, or there is one, sound or not
    config: None where tq_config.json is missing or damaged; then there are no layouts
    scale: how the codes were chosen; by the norm, as published, where nobody says it
    """

    faults: Faults
    index: str | None = None
    weight_map: dict[str, str] | None = None
    weight_files: tuple[str, ...] = ()
    unread: set[str] = field(default_factory=set)
    tensors: tuple[Located, ...] = ()
    config: TqConfig | None = None
    scale: str = "norm"
    model_config: Mapping[str, Any] = field(default_factory=dict)
    layouts: dict[str, GroupLayout] = field(default_factory=dict)
    manifest: Manifest | None = None
    needs_manifest: bool = True

    def scale_of(self, name: str) -> str:
        """How the codes of a tensor were chosen: under second moments, or as `scale` says."""
        calibration = self.config.calibration if self.config else {}
        is_calibrated = calibration and name not in calibration.get("without", ())
        return CALIBRATED if is_calibrated else self.scale

    @property
    def kept(self) -> dict[str, Located]:
        """Name -> tensor that is stored as it is."""
        every = {tensor.info.name: tensor for tensor in self.tensors}
        return {name: every[name] for name in every if not name.endswith(_PARTS)}


def examine(files: Source) -> Structure:
    """Examine everything but tensor data. Raises StorageError for a folder that can't be listed."""
    names, faults = files.names(), Faults()
    found = Structure(faults)
    if not files.has(tq_config.FILE_NAME) and files.has_unfinished_run():
        faults.add(_unfinished(files))
        return found
    _read_json_files(files, found)
    _find_weight_files(files, names, found)
    _check_strays(names, found)
    found.tensors = tuple(_read_headers(files, found))
    _check_index(found)
    if found.config:
        _find_layouts(found, found.config)
        _check_records(found, found.config)
    return found


def _unfinished(files: Source) -> Fault:
    return Fault(
        "TQ101",
        "an unfinished run",
        files.label,
        found=f"{WORK_FOLDER} and no {tq_config.FILE_NAME}",
    )


def _read_json_files(files: Source, found: Structure) -> None:
    faults = found.faults
    if files.has(CONFIG):
        with faults.catching("TQ104", CONFIG):
            found.model_config = read_object(files, CONFIG)
    says_it = tq_config.FILE_NAME if files.has(tq_config.FILE_NAME) else CONFIG
    with faults.catching("TQ103", says_it):
        found.config = find_tq_config(files, found.model_config)
        if not found.config:
            faults.add(Fault("TQ102", "missing: not a TQ3 checkpoint", tq_config.FILE_NAME))
        elif found.config.recipe:
            found.scale = recipe_from_record(found.config.recipe).scale
    if found.config:
        _check_recognition(found.model_config, found.config, faults)
    if files.has(tq_manifest.FILE_NAME):
        with faults.catching("TQ401", tq_manifest.FILE_NAME):
            found.manifest = parse_manifest(read_text(files, tq_manifest.FILE_NAME))
    elif found.config and (found.config.writer or "").startswith("tq3 "):
        missing = "missing, and tq3 always writes it: there are no checksums to compare with"
        faults.add(Fault("TQ402", missing, tq_manifest.FILE_NAME))
    else:
        found.needs_manifest = False


def _check_recognition(model_config: Mapping[str, Any], config: TqConfig, faults: Faults) -> None:
    """Existing writers leave the key out, or some of its members; what is there must be true."""
    told = model_config.get("quantization_config")
    if says_nothing(told):
        return
    true = quantization_config(config)
    if isinstance(told, dict):
        differing = [key for key in true if key in told and told[key] != true[key]]
        told, true = ({key: each[key] for key in differing} for each in (told, true))
    if told:
        message = f"quantization_config contradicts {tq_config.FILE_NAME}"
        faults.add(Fault("TQ105", message, CONFIG, found=str(told), expected=str(true)))


def _find_weight_files(files: Source, names: list[str], found: Structure) -> None:
    """The files whose tensors make the checkpoint: a single one comes first, as for hosts."""
    with found.faults.catching("TQ106", INDEX):
        found.index = choose_index(names, partial(read_object, files))
    if found.index:
        with found.faults.catching("TQ106", found.index):
            entries = entries_of(read_object(files, found.index), found.index)
            found.weight_map = dict(_located(entries, found))
    indexed = tuple(sorted(set((found.weight_map or {}).values())))
    if is_single_taken(names, indexed):
        found.weight_files = (SINGLE,)
    elif found.weight_map is not None:
        found.weight_files = indexed
    else:
        found.weight_files = tuple(name for name in names if name.endswith(SUFFIX))
        if len(found.weight_files) > 1 and not found.index:
            missing = "several .safetensors files and no index says which belong together"
            found.faults.add(Fault("TQ106", missing, INDEX))
    for file in found.weight_files:
        if not files.has(file):
            found.faults.add(Fault("TQ107", "the index names it, but it is not there", file))
    if not found.weight_files:
        found.faults.add(Fault("TQ107", "no safetensors weights in this folder", files.label))


def _located(entries: Mapping[str, Any], found: Structure) -> Iterator[tuple[str, str]]:
    """The tensors whose file the index names."""
    for tensor, file in entries.items():
        if isinstance(file, str):
            yield tensor, plain_path(file)
        else:
            what = Fault("TQ106", "not the name of a file", found.index, tensor, found=str(file))
            found.faults.add(what)


def _check_strays(names: list[str], found: Structure) -> None:
    """Hosts load by pattern: what lies at the top beside the shards may be taken for weights.

    What the manifest names is part of the checkpoint, whatever it is.
    """
    listed = found.manifest.files if found.manifest else ()
    known = {*found.weight_files, found.index, *listed}
    if found.index and found.weight_map is None:
        return  # the index is damaged: every shard would be a stray
    for name in names:
        if is_loaded_by_hosts(name) and name not in known:
            found.faults.add(Fault("TQ108", "weights that are not part of this checkpoint", name))


def _read_headers(files: Source, found: Structure) -> Iterator[Located]:
    files.expect(file for file in found.weight_files if files.has(file))
    for file in found.weight_files:
        tensors = _read_header(files, file, found) if files.has(file) else None
        if tensors is None:
            found.unread.add(file)
        else:
            yield from tensors


def _read_header(files: Source, file: str, found: Structure) -> list[Located] | None:
    tensors = size = None
    with found.faults.catching("TQ109", file):
        size = files.size(file)
    if size is not None:
        # Not of the size that was written: TQ403 will say so, and a broken header comes of that.
        pieces = found.manifest.files.get(file) if found.manifest else None
        cut = pieces is not None and size != sum(piece.length for piece in pieces)
        with (Faults() if cut else found.faults).catching("TQ201", file):
            tensors = read_tensors(files, file)
    return tensors


def _check_index(found: Structure) -> None:
    """Each tensor in one file, and in that which the index says."""
    weight_map = found.weight_map or {}
    for error in repeated(found.tensors):
        found.faults.take("TQ202", error)
    for error in misplaced(weight_map, found.tensors, found.unread):
        found.faults.take("TQ203", error)
    if found.weight_map is not None:
        for tensor in found.tensors:
            if tensor.info.name not in weight_map:
                fault = Fault("TQ204", "not in the index", tensor.file, tensor.info.name)
                found.faults.add(fault)


def _find_layouts(found: Structure, config: TqConfig) -> None:
    """The layout of every compressed tensor whose parts agree."""
    parts: dict[str, dict[str, Located]] = defaultdict(dict)
    for tensor in found.tensors:
        name = tensor.info.name
        suffix = next((suffix for suffix in _PARTS if name.endswith(suffix)), "")
        parts[name.removesuffix(suffix)][suffix] = tensor
    elsewhere = {name for name, file in (found.weight_map or {}).items() if file in found.unread}
    for stem, stored in parts.items():
        halves = [half for half in _PARTS if half in stored]
        if not halves or any(stem + half in elsewhere for half in _PARTS):
            continue
        is_twice = "" in stored or len(halves) == len(_PARTS)
        is_half = len(halves) == 1 or NORMS not in halves
        check = "TQ205" if is_half else "TQ206" if is_twice else "TQ207"
        file = stored[halves[0]].file
        alone = Checkpoint(tuple(stored.values()), {}, found.model_config)
        with found.faults.catching(check, file, stem):
            found.layouts |= packed_layouts(alone, config)


def _check_records(found: Structure, config: TqConfig) -> None:
    """Check what tq_config.json says of the tensors. Without every header nobody can tell."""
    if found.unread or not found.weight_files:
        return
    names = {tensor.info.name for tensor in found.tensors}
    for check, error in record_faults(config, names, found.layouts):
        found.faults.take(check, error)
