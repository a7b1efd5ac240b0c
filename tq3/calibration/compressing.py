"""A compression that first sends a text through the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tq3.calibration.calibrate import calibrate, check_least
from tq3.events import Report, Run
from tq3.format.arguments import Unpack
from tq3.format.options import RunKeywords, RunOptions, StrPath
from tq3.format.recipe import Recipe
from tq3.hub.options import HubOptions
from tq3.pipelines.checking import check_compression
from tq3.pipelines.compress import compress_checkpoint
from tq3.pipelines.opening import FOLDER
from tq3.storage.selection import BY_POLICY, Selection

# Behind the name of the target: beside it, where an unfinished run finds them again.
_SUFFIX = ".moments.safetensors"


def compress_calibrated(
    source: StrPath,
    out: StrPath,
    recipe: Recipe,
    text: StrPath,
    tokens: int,
    *,
    verbatim_config: bool = False,
    selection: Selection = BY_POLICY,
    hub: HubOptions = FOLDER,
    **run: Unpack[RunKeywords],
) -> Run[Report]:
    """Calibrate `source` with a text, and compress it under the moments of that.

    The moments lie beside `out` until the checkpoint is complete: a run that goes on, or begins
    anew with other widths, takes them as they are.
    """
    how: dict[str, Any] = {"verbatim_config": verbatim_config, "selection": selection, "hub": hub}
    options = RunOptions(**run)
    check_least("--calibration-tokens", tokens)
    check_compression(source, out, recipe, options, **how)
    moments = Path(f"{Path(out)}{_SUFFIX}")
    yield from calibrate(
        source,
        moments,
        text=str(text),
        tokens=tokens,
        overwrite=True,
        reuse=options.resume,
        hub=hub,
    )
    report = yield from compress_checkpoint(source, out, recipe, moments=moments, **how, **run)
    moments.unlink(missing_ok=True)
    return report
