"""The command that measures what a checkpoint lost: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tq3.cli import options as opt
from tq3.cli.evaluation_tables import of_evaluation
from tq3.cli.screen import Screen
from tq3.events import follow
from tq3.format.arguments import Unpack
from tq3.format.options import BesideKeywords, FloatDtype
from tq3.pipelines.opening import options_of_both
from tq3.wings import wing

OutArg = Annotated[str, opt.checkpoint("OUT", "A TQ3 checkpoint")]
SourceOpt = Annotated[
    str,
    typer.Option("--source", metavar="SOURCE", help="The checkpoint that OUT was made from."),
]
TextOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Plain text to judge by; a short one is built in.", readable=False
    ),
]
TokensOpt = Annotated[int, typer.Option(metavar="N", help="Tokens of the text, at most.")]
ContextOpt = Annotated[int, typer.Option(metavar="N", help="Tokens of one sequence.")]
DtypeOpt = Annotated[FloatDtype, typer.Option(help="Type that is computed in.")]
ByClassOpt = Annotated[
    bool,
    typer.Option(
        "--by-class",
        help="Also with one class of tensors compressed and all others as in SOURCE, each in turn.",
    ),
]
BosOpt = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Begin sequences with the BOS token; default as tokenizer and config.json say.",
        show_default=False,
    ),
]
SaveOpt = Annotated[
    bool,
    typer.Option("--save", help="Write the figures into OUT, for its model card."),
]
PlotOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Draw classes and layers, as PNG, SVG or PDF.", readable=False
    ),
]


def evaluate(
    path: OutArg,
    source: SourceOpt,
    text: TextOpt = None,
    tokens: TokensOpt = 4096,
    context: ContextOpt = 512,
    dtype: DtypeOpt = "float32",
    by_class: ByClassOpt = False,
    bos: BosOpt = None,
    plot: PlotOpt = None,
    save: SaveOpt = False,
    json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    **options: Unpack[BesideKeywords],
) -> None:
    """Measure on a text what OUT lost.

    Perplexity beside SOURCE, KL divergence from it, errors by layer. One layer at a time is in
    memory. Needs pip install 'tq3[eval]'.
    """
    with Screen(json=json, quiet=quiet) as screen:
        evaluation = wing("evaluation", "evaluate", "tq3 eval")
        plotting = wing("evaluation", "plotting", "tq3 eval") if plot else None
        if plotting:
            plotting.check_file(plot)
        saving = wing("evaluation", "saving", "tq3 eval") if save else None
        checkpoint = saving.check_folder(path) if saving else None
        options["show_download"] = screen.draws
        hub, source_hub = options_of_both(path, source, options)
        run = evaluation.evaluate(
            path,
            source,
            text=text,
            tokens=tokens,
            context=context,
            dtype=dtype,
            by_class=by_class,
            bos=bos,
            hub=hub,
            source_hub=source_hub,
        )
        evaluated = follow(run, screen.watch())
        screen.evaluation(evaluated, of_evaluation(evaluated))
        if plotting:
            plotting.draw(evaluated, plot)
        if saving:
            saving.save(evaluated, path, checkpoint)
