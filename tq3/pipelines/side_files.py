"""The side files of a plan, for a run and for what describes one: chosen, checked, and in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from tq3.errors import UsageError
from tq3.format import config as tq_config
from tq3.format import manifest, quality
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import Source
from tq3.format.weight_files import INDEX, SINGLE
from tq3.plan.plan import Plan
from tq3.storage.selection import Selection
from tq3.storage.sidecars import Sidecars, choose_sidecars
from tq3.units import size


def side_files(
    files: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    selection: Selection,
    *,
    written: Iterable[str],
    renamed: Mapping[str, str],
    listed: Collection[str] = (),
) -> Sidecars:
    """The files that are copied along, beside the weights and files that are written anew.

    written: other files that the output gets and are no copies
    renamed, listed: as `choose_sidecars` takes them

    Raises UsageError where a copy would take the place of what is written.
    """
    ours = (INDEX, tq_config.FILE_NAME, manifest.FILE_NAME, quality.FILE_NAME, *written)
    found = choose_sidecars(
        files.tree(),
        (*checkpoint.files, *ours),
        renamed,
        selection,
        listed,
        checkpoint.copies,
    )
    weights = {SINGLE, *plan.weight_files}
    if taken := next((name for name, copy in found.copied.items() if copy in weights), None):
        raise UsageError(
            "hosts would load it in place of the weights that are written",
            file=files.place(taken),
            fix=f"leave it out: --without {taken}",
        )
    return found


def in_words(files: Source, sidecars: Sidecars, listed: Collection[str] = ()) -> Iterator[str]:
    """Weights that travel as they are, and what stays although this model may need it.

    listed: names of what is part of the source whatever it is
    """
    if sidecars.weights:
        n_bytes = size(sum(map(files.size, sidecars.weights)))
        tops = (name.partition("/") for name in sidecars.weights)
        shown = ", ".join(dict.fromkeys(top + slash for top, slash, _ in tops))
        yield f"copied as they are, {n_bytes} of weights: {shown}"
    # What was there when the copies were chosen, and is not now, fails when it is copied.
    rest = (name for name in listed if name not in sidecars.copied)
    if missing := [name for name in rest if not files.has(name)]:
        yield f"not copied: {', '.join(missing)} (in the manifest, and not there)"
    if sidecars.doubtful:
        shown = ", ".join(f"{name} ({why})" for name, why in sidecars.doubtful.items())
        yield f"not copied: {shown}; use --also for what a host needs"
