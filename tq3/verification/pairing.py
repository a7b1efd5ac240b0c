"""Which tensor of a checkpoint stands for which of its source, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator

from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.header import FLOATS
from tq3.format.layout import NORMS, SUFFIXES, GroupLayout, stem_of_codes
from tq3.plan.plan import Action, Task
from tq3.verification.checks import Fault
from tq3.verification.structure import Structure

_WHY = "compared with the source"


def pair_up(structure: Structure, original: Checkpoint) -> tuple[list[Task], list[Fault]]:
    """A task for each pair that can be compared, a fault for each that can't.

    Sources of a task: codes, norms and the original's tensor; or a kept tensor and the original's.
    """
    sources = {tensor.info.name: tensor for tensor in original.tensors}
    stored = {tensor.info.name: tensor for tensor in structure.tensors}
    kept = structure.kept
    compressed = {found[0] for name in stored if (found := stem_of_codes(name))}
    tasks, faults = [], list(_unpaired(structure, sources, compressed | kept.keys()))
    for name, source in sources.items():
        pair: Task | Fault | None = None
        if name in structure.layouts:
            layout = structure.layouts[name]
            parts = stored[name + SUFFIXES[layout.code]], stored[name + NORMS]
            compared = source if layout.transposed else source.of_host
            pair = _coded(parts, compared, layout, structure.scale_of(name))
        elif name in kept:
            pair = _kept(kept[name], source.of_host)
        if isinstance(pair, Task):
            tasks.append(pair)
        elif pair:
            faults.append(pair)
    return tasks, faults


def _unpaired(
    structure: Structure, sources: dict[str, Located], stored: set[str]
) -> Iterator[Fault]:
    """Tensors that only one side has. An unread shard may hold any that seem to be missing."""
    if not structure.unread:
        for name in sorted(sources.keys() - stored):
            yield Fault("TQ501", f"the source has it in {sources[name].file}", None, name)
    places = {tensor.info.name: tensor.file for tensor in structure.tensors}
    places |= {found[0]: places[name] for name in places if (found := stem_of_codes(name))}
    for name in sorted(stored - sources.keys()):
        yield Fault("TQ502", "not in the source", places.get(name), name)


def _coded(
    parts: tuple[Located, Located], source: Located, layout: GroupLayout, scale: str
) -> Task | Fault:
    name = source.info.name
    if source.info.shape != layout.shape or source.info.dtype not in FLOATS:
        return Fault(
            "TQ503",
            "the codes are not those of the source's tensor",
            parts[0].file,
            name,
            found=f"shape {list(layout.shape)}",
            expected=f"{source.info.dtype} {list(source.info.shape)}",
        )
    sources = (*parts, source)
    return Task(name, Action.DECODE, _WHY, sources, (), layout.units, layout, scale=scale)


def _kept(tensor: Located, source: Located) -> Task | Fault:
    found, given = tensor.info, source.info
    castable = found.dtype in FLOATS and given.dtype in FLOATS
    if found.shape != given.shape or not (castable or found.dtype == given.dtype):
        return Fault(
            "TQ503",
            "kept, but not as the source's tensor",
            tensor.file,
            found.name,
            found=f"{found.dtype} {list(found.shape)}",
            expected=f"{given.dtype} {list(given.shape)}"
            + (" or another float" if given.dtype in FLOATS else ""),
        )
    action = Action.COPY if found.dtype == given.dtype else Action.CAST
    units = found.n_elements if found.dtype in FLOATS else found.n_bytes
    return Task(found.name, action, _WHY, (tensor, source), (), units)
