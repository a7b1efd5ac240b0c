"""What speaks against a compression, asked before anything that takes long."""

from __future__ import annotations

from pathlib import Path

from tq3.equalization.choice import choose_scalings
from tq3.format.options import RunOptions, StrPath
from tq3.format.recipe import Recipe
from tq3.hub.options import HubOptions
from tq3.pipelines.compress import Compression
from tq3.pipelines.first_plan import refuse_uncalibrated
from tq3.pipelines.opening import FOLDER, open_source
from tq3.storage.selection import BY_POLICY, Selection
from tq3.storage.target_checks import check_target


def check_compression(
    source: StrPath,
    out: StrPath,
    recipe: Recipe,
    options: RunOptions,
    *,
    verbatim_config: bool = False,
    selection: Selection = BY_POLICY,
    hub: HubOptions = FOLDER,
) -> None:
    """Raise what `compress_checkpoint` with moments would for source, recipe, side files, target.

    But for moments that don't fit, and an unfinished run in the target that can't be continued.
    """
    with open_source(source, hub) as files:
        job = Compression(files, recipe, verbatim_config, selection)
        refuse_uncalibrated(job.plan)
        copied = job.sidecars().copied
        choose_scalings(job.checkpoint, job.plan, copied, recipe.equalize)
        check_target(Path(out), files.folder, overwrite=options.overwrite)
