"""Every option that a Python function and a command share: its name, its type and what it does.

A key of these dictionaries is a keyword of functions such as `tq3.compress`, and with dashes an
option of the command. Where it is not given, the field of its name decides, of `Recipe`,
`RunOptions`, `tq3.storage.selection.Selection` or `tq3.hub.options.HubOptions`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

from tq3.format.arguments import check_fields
from tq3.format.calibration_options import CalibrationKeywords
from tq3.format.option import EXACT, FIRST, OUTPUT, RUN, SMALL, Option
from tq3.format.recipe import Code, ExpertGroups, GroupSize, KeptDtype, Nonfinite, Recipe, Scale
from tq3.format.sizes import DEFAULT_SHARD_SIZE
from tq3.format.widths import Bits, NormDtype

FloatDtype = Literal["bfloat16", "float16", "float32"]
Globs = str | Sequence[str] | None
StrPath = str | os.PathLike[str]


class ShardKeywords(TypedDict, total=False):
    """How large output files may become."""

    max_shard_size: Annotated[
        float | str | None,
        Option("Tensor bytes of one file.", OUTPUT, "SIZE", default=DEFAULT_SHARD_SIZE),
    ]


class RecipeKeywords(ShardKeywords, total=False):
    """How to compress: what `tq3.make_recipe` makes a `Recipe` of."""

    bits: Annotated[Bits | None, Option("Width of every code.")]
    recipe: Annotated[
        Recipe | StrPath | None,
        Option(
            "Widths by role: native, mixed, best, or a file (docs/recipes.md).",
            metavar="NAME|FILE.toml",
        ),
    ]
    target_size: Annotated[
        float | str | None,
        Option(
            "Choose widths so that all weight files have at most this size: 13GiB.", FIRST, "SIZE"
        ),
    ]
    target_bpw: Annotated[
        float | None,
        Option(
            "Choose widths so that what may be compressed has at most so many bits a weight: 3.4.",
            SMALL,
            "BITS",
        ),
    ]
    lm_head: Annotated[
        Bits | None, Option("Compress the output head, too. Other readers can't read it.", SMALL)
    ]
    embeddings: Annotated[
        Bits | None, Option("Compress token embeddings, too. Other readers can't read them.", SMALL)
    ]
    norms: Annotated[
        NormDtype | None,
        Option(
            "How norms are stored. float16 makes files smaller; other readers may misread it.",
            SMALL,
            default="float32; float16 with --recipe best or a target",
        ),
    ]
    group_size: Annotated[GroupSize | None, Option("Weights that share a norm.", SMALL)]
    scale: Annotated[
        Scale | None,
        Option(
            "How codes are chosen: search for the smallest error, or from the norm, as published. "
            "Same size, same readers.",
            SMALL,
        ),
    ]
    code: Annotated[
        Code | None,
        Option(
            "What codes of 3 and 4 bits stand for: levels, as published, or the path through a "
            "trellis: three fifths of the error in as many bytes, but slower to make. Readers of "
            "other makes can't read it, and no host serves it packed yet.",
            SMALL,
        ),
    ]
    sensitive_bits: Annotated[Bits | None, Option("Another width for sensitive tensors.", SMALL)]
    sensitive_patterns: Annotated[
        Globs,
        Option("Part of the name of a sensitive tensor.", SMALL, "TEXT", "--sensitive-pattern"),
    ]
    equalize: Annotated[
        bool | None,
        Option(
            "Rescale channels so that less is lost: the same function by other weights, kept ones "
            "too, read twice. --equalize refuses where that is impossible.",
            EXACT,
            default="wherever the architecture is known",
        ),
    ]
    keep: Annotated[Globs, Option("Leave tensors of these names uncompressed.", EXACT, "GLOB")]
    only: Annotated[
        Globs,
        Option("Compress these tensors and no others, whatever the recipe says.", EXACT, "GLOB"),
    ]
    keep_dtype: Annotated[
        KeptDtype | None,
        Option(
            "How kept floating-point tensors are stored: float16, but what is small and in F32 "
            "stays so; or source, all as they are.",
            EXACT,
            default="float16 as published, source with a recipe other than native, a target, "
            "or widths for head and embeddings",
        ),
    ]
    expert_groups: Annotated[
        ExpertGroups | None,
        Option(
            "How fused experts that are stored with inputs as rows (gpt-oss in BF16, Llama 4) are "
            "cut: rows as stored, or the inputs of each output, which hosts can serve packed.",
            SMALL,
            default="stored as published, inputs with a recipe other than native, a target, or "
            "widths for head and embeddings",
        ),
    ]
    nonfinite: Annotated[
        Nonfinite | None,
        Option("At a NaN or infinity end with an error, or keep that tensor uncompressed.", EXACT),
    ]


class MachineKeywords(TypedDict, total=False):
    """Which threads and kernels do the work."""

    workers: Annotated[
        int | None,
        Option(
            "Threads; default one a processor, at most 16 (from the Hub at least 8). "
            "Never changes a byte.",
            RUN,
            "N",
        ),
    ]
    backend: Annotated[
        str | None,
        Option("Codec by name, avx2 or numpy for example; default the fastest.", RUN, "NAME"),
    ]


class RunKeywords(MachineKeywords, total=False):
    """How a run that writes a folder is carried out: `RunOptions`."""

    resume: Annotated[
        bool, Option("Continue an unfinished run in OUT, or start anew.", RUN, default=True)
    ]
    overwrite: Annotated[
        bool,
        Option(
            "Replace what is in OUT: a checkpoint, or an unfinished run of another plan.", OUTPUT
        ),
    ]


class PartKeywords(TypedDict, total=False):
    """Which share of the work a run takes: `tq3.format.parts.Part`."""

    part: Annotated[
        str | tuple[int, int] | None,
        Option(
            "Write part I of N only, beside other processes or machines; tq3 finish joins them "
            "(docs/scale.md).",
            RUN,
            "I/N",
        ),
    ]


class TravelKeywords(TypedDict, total=False):
    """Which side files are copied: `tq3.storage.selection.Selection`."""

    also: Annotated[
        Globs,
        Option(
            "Copy files of these paths along that would stay behind: weights in another format, "
            "an adapter.",
            OUTPUT,
            "GLOB",
        ),
    ]
    without: Annotated[
        Globs,
        Option("Leave files of these paths behind that would be copied along.", OUTPUT, "GLOB"),
    ]


class RevisionKeywords(TypedDict, total=False):
    """Which state of a repository is read."""

    revision: Annotated[
        str | None,
        Option("Branch, tag or commit of a repository; default its main branch.", RUN, "REVISION"),
    ]


class HubKeywords(RevisionKeywords, total=False):
    """How a repository is read: `tq3.hub.options.HubOptions`."""

    download: Annotated[
        bool,
        Option("Fetch each repository that is named into the Hub cache first, and read that.", RUN),
    ]
    show_download: bool


class CompressKeywords(
    RecipeKeywords,
    CalibrationKeywords,
    RunKeywords,
    PartKeywords,
    TravelKeywords,
    HubKeywords,
    total=False,
):
    """The keywords of `tq3.compress` and `tq3.preview`."""

    verbatim_config: Annotated[
        bool, Option("Copy config.json without adding quantization_config.", OUTPUT)
    ]


class FinishKeywords(MachineKeywords, total=False):
    """The keywords of `tq3.finish`."""

    source: Annotated[
        StrPath | None,
        Option("Where the parts' source lies now, if not where they read it.", metavar="SOURCE"),
    ]


class InspectKeywords(RecipeKeywords, RevisionKeywords, total=False):
    """The keywords of `tq3.inspect`."""


class RestoreKeywords(ShardKeywords, RunKeywords, TravelKeywords, HubKeywords, total=False):
    """The keywords of `tq3.restore`."""

    dtype: Annotated[
        FloatDtype,
        Option(
            "Type of the restored tensors. What is kept in F32 and small stays so.",
            default="bfloat16",
        ),
    ]


class BesideKeywords(HubKeywords, total=False):
    """How two repositories are read, of which `source` is the other."""

    source_revision: Annotated[
        str | None, Option("Branch, tag or commit of --source.", RUN, "REVISION")
    ]


class VerifyKeywords(MachineKeywords, BesideKeywords, total=False):
    """The keywords of `tq3.verify`."""

    source: Annotated[
        StrPath | None,
        Option(
            "Compare every tensor with this checkpoint, which PATH was made from.",
            metavar="SOURCE",
        ),
    ]
    structure: Annotated[bool, Option("Look at listing, JSON files and headers alone.")]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run that writes a folder is carried out: see `RunKeywords`."""

    workers: int | None = None
    backend: str | None = None
    resume: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
