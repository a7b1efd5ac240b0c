"""The arguments and options of the commands, named as the parameters of the Python functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tq3.format.recipe import DEFAULT_SHARD_SIZE


def _argument(name: str, text: str) -> Any:
    # typer would call an unreadable folder a wrong request; it is a read that fails.
    return typer.Argument(metavar=name, help=text, readable=False)


# Texts, not paths: `./name` is a folder and `name` may be a repository.
SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="An ordinary checkpoint (safetensors): a folder, or a repository of the Hub.",
    ),
]
PathArg = Annotated[
    str, typer.Argument(metavar="PATH", help="A checkpoint: a folder, or a repository of the Hub.")
]
Tq3Arg = Annotated[
    str,
    typer.Argument(metavar="PATH", help="A TQ3 checkpoint: a folder, or a repository of the Hub."),
]
OriginalOpt = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="SOURCE",
        help="Compare every tensor with this checkpoint, which PATH was made from.",
    ),
]
OutArg = Annotated[Path, _argument("OUT", "Folder to write; new or empty.")]
OutOrNoneArg = Annotated[
    Path | None, _argument("OUT", "Folder to write; new or empty. Not needed for --dry-run.")
]

BitsOpt = Annotated[int | None, typer.Option(help="Width of every code: 2, 3 or 4. [default: 3]")]
RecipeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.toml",
        help="Widths by role: native, mixed, best, or a file (docs/recipes.md).",
    ),
]
TargetSizeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Choose widths so that all weight files together have at most this size: 13GiB.",
    ),
]
TargetBpwOpt = Annotated[
    float | None,
    typer.Option(
        metavar="BITS",
        help="Choose widths so that what may be compressed has at most so many bits a weight: 3.4.",
    ),
]
LmHeadOpt = Annotated[
    int | None,
    typer.Option(help="Compress the output head, too: 2, 3 or 4. Other readers can't read it."),
]
EmbeddingsOpt = Annotated[
    int | None,
    typer.Option(help="Compress token embeddings, too: 2, 3 or 4. Other readers can't read them."),
]
GroupOpt = Annotated[int, typer.Option(help="Weights that share a norm: 32, 64, 128 or 256.")]
KeepOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave tensors of these names uncompressed. Repeatable."),
]
OnlyOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Compress these tensors and no others, whatever the recipe says. Repeatable.",
    ),
]
KeepDtypeOpt = Annotated[
    str | None,
    typer.Option(
        help="How kept floating-point tensors are stored: float16, but what is small and in F32 "
        "stays so; or source, all as they are. [default: float16 as published, source with "
        "a recipe other than native, a target, or widths for head and embeddings]"
    ),
]
SensitiveBitsOpt = Annotated[
    int | None, typer.Option(help="Another width for the sensitive tensors: 2, 3 or 4.")
]
SensitivePatternOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--sensitive-pattern",
        metavar="TEXT",
        help="Part of the name of a sensitive tensor; default o_proj and down_proj. Repeatable.",
    ),
]
ShardOpt = Annotated[
    str, typer.Option(metavar="SIZE", help="Tensor bytes of one file, for example 5GiB.")
]
NonfiniteOpt = Annotated[
    str, typer.Option(help="At a NaN or infinity: error, or keep that tensor uncompressed.")
]
ScaleOpt = Annotated[
    str,
    typer.Option(
        help="How codes are chosen: search for the scale of the smallest error, or norm, as "
        "published. Same size, same readers.",
    ),
]
NormsOpt = Annotated[
    str | None,
    typer.Option(
        help="How norms are stored: float32, or float16 for smaller files, which readers of other "
        "makes may misread. [default: float32]"
    ),
]
EqualizeOpt = Annotated[
    bool,
    typer.Option(
        "--equalize",
        help="Scale columns before they are coded, and what feeds them the other way: the model "
        "computes the same and loses less, but kept tensors differ from the source's. A pass more.",
    ),
]
AlsoOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        metavar="GLOB",
        help="Copy files of these paths along that would stay behind: weights in another format, "
        "an adapter. Repeatable.",
    ),
]
WithoutOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="GLOB",
        help="Leave files of these paths behind that would be copied along. Repeatable.",
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads; default one a processor, at most 16 (from the Hub at least 8). "
        "Never changes a byte.",
    ),
]
BackendOpt = Annotated[
    str | None, typer.Option(help="Codec by name, for example avx2 or numpy; default the fastest.")
]
OverwriteOpt = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what is in OUT: a checkpoint, or an unfinished run of another plan.",
    ),
]
ResumeOpt = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Continue an unfinished run that is in OUT, or start anew."
    ),
]
VerbatimOpt = Annotated[
    bool,
    typer.Option("--verbatim-config", help="Copy config.json without adding quantization_config."),
]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan from headers alone; write nothing.")
]
TensorsOpt = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
DtypeOpt = Annotated[
    str,
    typer.Option(
        help="Type of the restored tensors: bfloat16, float16 or float32. What is kept in F32 and "
        "small stays so."
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
RevisionOpt = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="Branch, tag or commit of a repository; default its main branch.",
    ),
]
SourceRevisionOpt = Annotated[
    str | None,
    typer.Option("--source-revision", metavar="REVISION", help="Branch, tag or commit of SOURCE."),
]
DownloadOpt = Annotated[
    bool,
    typer.Option("--download", help="Fetch a repository into the Hub cache first, and read that."),
]
StructureOpt = Annotated[
    bool, typer.Option("--structure", help="Look at listing, JSON files and headers alone.")
]


@dataclass
class WidthOptions:
    """What a command may be asked for that shows a plan: `tq3.format.request.make_recipe`."""

    bits: BitsOpt = None
    recipe: RecipeOpt = None
    target_size: TargetSizeOpt = None
    target_bpw: TargetBpwOpt = None
    lm_head: LmHeadOpt = None
    embeddings: EmbeddingsOpt = None
    norms: NormsOpt = None
    equalize: EqualizeOpt = False


@dataclass
class RecipeOptions(WidthOptions):
    """The same for a command that carries it out."""

    group_size: GroupOpt = 128
    keep: KeepOpt = None
    only: OnlyOpt = None
    keep_dtype: KeepDtypeOpt = None
    sensitive_bits: SensitiveBitsOpt = None
    sensitive_patterns: SensitivePatternOpt = None
    max_shard_size: ShardOpt = DEFAULT_SHARD_SIZE
    nonfinite: NonfiniteOpt = "error"
    scale: ScaleOpt = "search"


def takes(options: type[WidthOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options in place of its parameter `asked`, a dict of them."""
    hints = get_type_hints(options, include_extras=True)
    names = [option.name for option in fields(options)]

    def extended(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            command(asked={name: given.pop(name) for name in names}, **given)

        own = inspect.signature(command, eval_str=True).parameters
        first = [own[name] for name in own if own[name].default is inspect.Parameter.empty]
        rest = [own[name] for name in own if own[name].default is not inspect.Parameter.empty]
        ours = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=hints[option.name],
            )
            for option in fields(options)
        ]
        parameters = [p for p in (*first, *ours, *rest) if p.name != "asked"]
        as_keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(as_keywords)  # type: ignore[attr-defined]
        return run

    return extended
