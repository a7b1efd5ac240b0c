"""The command that measures what a model's weights multiply: calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tq3.cli import options as opt
from tq3.cli.cells import add, facts
from tq3.cli.screen import Screen
from tq3.events import follow
from tq3.format.arguments import Unpack, only
from tq3.format.options import HubKeywords
from tq3.hub.options import HubOptions
from tq3.moments.facts import CALIBRATION_TOKENS
from tq3.units import count, counted, duration, size
from tq3.wings import wing

OutOpt = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="MOMENTS", help="File to write: .safetensors.", readable=False
    ),
]
TextOpt = Annotated[
    str,
    typer.Option(
        metavar="TEXT|self|random", help="Plain text, what the model writes, or random tokens."
    ),
]
TokensOpt = Annotated[int, typer.Option(metavar="N", help="Tokens of the text, at most.")]
ContextOpt = Annotated[int, typer.Option(metavar="N", help="Tokens of one sequence.")]
OverwriteOpt = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file, if it is there.")
]


def calibrate(
    source: opt.SourceArg,
    out: OutOpt,
    text: TextOpt = "random",
    tokens: TokensOpt = CALIBRATION_TOKENS,
    context: ContextOpt = 512,
    overwrite: OverwriteOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[HubKeywords],
) -> None:
    """Write what the weights of SOURCE multiply, for `tq3 compress --calibrate MOMENTS`.

    Second moments of the inputs of all matrices. One layer at a time is in memory. Needs
    pip install 'tq3[eval]'.
    """
    with Screen(json=json, quiet=quiet) as screen:
        calibration = wing("calibration", "calibrate", "tq3 calibrate")
        options["show_download"] = screen.draws
        run = calibration.calibrate(
            source,
            out,
            text=text,
            tokens=tokens,
            context=context,
            overwrite=overwrite,
            hub=HubOptions(**only(HubKeywords, options)),
        )
        found = follow(run, screen.watch())
        table = facts()
        of = "drawn at random" if found.facts.text == "random" else f"of {found.facts.text}"
        add(table, "moments", f"{found.path}, {size(found.n_bytes)}")
        add(table, "inputs", f"{found.n_inputs}, of {counted(found.n_readers, 'tensor')}")
        add(table, "tokens", f"{count(found.facts.tokens)} {of}, damping {found.facts.damping}")
        scarce = sum(found.scarce.values())
        if scarce:
            add(table, "experts", f"{counted(scarce, 'input')} with few tokens")
        add(table, "time", duration(found.seconds))
        add(table, "peak memory", size(found.peak_memory_bytes))
        screen.evaluation(found, [table])
