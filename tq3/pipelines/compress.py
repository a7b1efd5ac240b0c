"""From an ordinary checkpoint to a TQ3 checkpoint: plan from headers, carry out, publish."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tq3.codec.backend import Backend, get_backend
from tq3.dequantization.declared import IN_PARAMS, PARAMS, is_left_out
from tq3.dequantization.orientation import with_host_views
from tq3.equalization.choice import choose_scalings
from tq3.equalization.estimate import estimate_factors
from tq3.equalization.scaled_source import ScaledSource, equalized
from tq3.errors import BadInput, UsageError
from tq3.events import Notice, Report, Run
from tq3.format import config as tq_config
from tq3.format.arguments import Unpack, of_its_types
from tq3.format.config import MeasuredError, TqConfig, recipe_record
from tq3.format.equalization import NO_FACTORS, Factors
from tq3.format.files import CONFIG, Source, read_text
from tq3.format.json_text import remove_everywhere, remove_key
from tq3.format.options import RunKeywords, RunOptions, StrPath
from tq3.format.parts import Part, make_part
from tq3.format.recipe import Recipe
from tq3.format.recognition import mark
from tq3.hub.options import HubOptions
from tq3.moments.cost import coding_cost
from tq3.moments.feedbacks import Columns, Feedbacks, unscaled
from tq3.moments.reading import Moments, moments_or_none, of_others
from tq3.pipelines.findings import Finding, Kind
from tq3.pipelines.first_plan import first_plan, open_for, worth_knowing
from tq3.pipelines.job import Job
from tq3.pipelines.machine import check_workers, uncollected
from tq3.pipelines.opening import FOLDER, open_source
from tq3.pipelines.part import run_part, shared_factors
from tq3.pipelines.run import run_job
from tq3.plan import joined
from tq3.plan.allocation import unreachable_target
from tq3.plan.compressing import describe_compression, plan_compression
from tq3.plan.coverage import little_compressed
from tq3.plan.identity import Identity, before_factors, with_factors
from tq3.plan.learned import NOTHING_LEARNED, Learned
from tq3.plan.plan import Plan
from tq3.storage.parts import check_part
from tq3.storage.selection import BY_POLICY, Selection
from tq3.storage.sidecars import RENAMED
from tq3.storage.target_checks import check_continuation, check_target
from tq3.version import __version__

_PASS = "columns are equalized (--no-equalize leaves weights as they are): a first pass reads them"


@of_its_types
def compress_checkpoint(
    source: StrPath,
    out: StrPath,
    recipe: Recipe,
    *,
    verbatim_config: bool = False,
    selection: Selection = BY_POLICY,
    hub: HubOptions = FOLDER,
    moments: StrPath | None = None,
    part: str | tuple[int, int] | None = None,
    **run: Unpack[RunKeywords],
) -> Run[Report]:
    """Compress the checkpoint `source` into the new folder `out`, telling what happens.

    source: a folder, or as a text the id of a repository on the Hub, which `hub` is about
    verbatim_config: leave config.json as it is, without the key by which hosts recognise the folder
    selection: side files that travel or stay in spite of the policy
    moments: a file of `tq3 calibrate`: codes are chosen under what the weights multiply
    part: "3/16" or (3, 16): write only the shards of that part, which `finish_parts` joins

    Raises UsageError, BadInput, StorageError or NetworkError; then `out` has no checkpoint, and
    what was done so far is continued by the next run with the same source and recipe.
    """
    options, asked = RunOptions(**run), make_part(part)
    with open_source(source, hub) as files, moments_or_none(moments) as known:
        job = Compression(files, recipe, verbatim_config, selection, known)
        yield from job.equalize(Path(out), options, asked)
        if known:
            workers = check_workers(options.workers, files.connections)
            yield Notice(coding_cost(job.plan, get_backend(options.backend), workers))
        if asked:
            return (yield from run_part(job, Path(out), asked, options, job.request()))
        return (yield from run_job(job, out, options))


class Compression(Job):
    """The plan of a compression, and what the values taught it on the way.

    Other arguments as `compress_checkpoint` takes them.
    """

    command = "compress"
    marker_name = tq_config.FILE_NAME
    writer = f"tq3 {__version__}"
    renamed = RENAMED

    def __init__(
        self,
        files: Source,
        recipe: Recipe,
        verbatim_config: bool,
        selection: Selection,
        moments: Moments | None = None,
    ) -> None:
        self._moments = moments
        with uncollected():
            super().__init__(*open_for(recipe, files), selection)
            self.plan = self._first_plan = first_plan(files, self.checkpoint, recipe, moments)
        if verbatim_config and self.checkpoint.source_quantization:
            raise UsageError(
                "its config.json says that the weights are quantised as they were",
                file=files.label,
                fix="leave --verbatim-config out",
            )
        self._recipe = recipe
        self._verbatim_config = verbatim_config
        self._factors: Factors = NO_FACTORS
        self._columns: Columns = unscaled
        self._learned = NOTHING_LEARNED
        self._findings: dict[str, Finding] = {}
        spare = unreachable_target(self.plan, recipe)
        self._notices += [Notice(f"the target is {spare}")] if spare else []
        self._notices += map(Notice, worth_knowing(files, self.plan, recipe))
        if moments:
            self._notices += map(
                Notice, of_others(moments, self.checkpoint, files.origin, self.plan)
            )

    def equalize(self, out: Path, options: RunOptions, part: Part | None) -> Run[None]:
        """Estimate the factors by a first pass over the weights, and read scaled ones from then on.

        Nothing is scaled where the recipe says so, or where it leaves that open and it can't be.
        What is refused is refused before that pass is spoken of. Parts share one such pass.
        """
        workers = check_workers(options.workers, self.files.connections)
        overwrite, resume = options.overwrite, options.resume and not options.overwrite
        copied = self.sidecars().copied
        choice = choose_scalings(self.checkpoint, self.plan, copied, self._recipe.equalize)
        self._recipe = replace(self._recipe, equalize=choice.scalings is not None)
        self._notices += [Notice(choice.why_not)] if choice.why_not else []
        if choice.scalings is None:
            return
        scalings, again = choice.scalings, ", fetched twice unless --download keeps them"

        def estimate() -> Run[Factors]:
            yield Notice(_PASS if self.files.folder else _PASS + again)
            found = yield from estimate_factors(self.files, self.checkpoint, scalings, workers)
            return {name: found[name] for name in found if name in choice.links}

        if part:
            check_part(out, part, self.files.folder, overwrite=overwrite)
            plain = self.identity()
            factors = yield from shared_factors(out, plain, estimate, overwrite=not resume)
        else:
            check_target(out, self.files.folder, overwrite=overwrite)
            expected = partial(before_factors, self.identity())
            check_continuation(out, expected, resume=resume)
            factors = yield from estimate()
        self.scale(factors)

    def scale(self, factors: Factors) -> None:
        """Read weights scaled by these factors from here on."""
        self._factors = factors
        scaled = equalized(self.files, self.checkpoint, factors)
        if isinstance(scaled, ScaledSource):
            self._columns = scaled.column_factors
        self.files = with_host_views(scaled, self.checkpoint)

    def request(self) -> dict[str, Any]:
        """What the whole output depends on beside the identity, and where the source lies."""
        origin = self.files.origin
        is_here = self.files.folder is not None
        return {
            "source": os.path.abspath(self.files.folder) if self.files.folder else origin.model,
            "revision": None if is_here else origin.revision,
            "verbatim_config": self._verbatim_config,
            "moments": os.path.abspath(self._moments.file) if self._moments else None,
            "selection": self.selection.to_record(),
            "writer": self.writer,
        }

    def options(self) -> dict[str, Any]:
        """The recipe."""
        return recipe_record(self._recipe)

    def identity(self) -> Identity:
        """The run's identity with the factors, on which every byte depends, too."""
        identity = with_factors(super().identity(), self._factors)
        return replace(identity, moments=self._moments.digest if self._moments else "")

    def feedbacks(self, backend: Backend) -> Feedbacks | None:
        """Of the moments, divided by the factors of columns."""
        if self._moments is None:
            return None
        return Feedbacks(self._moments, self._columns, backend)

    def apply(self, learned: Learned) -> None:
        """Plan with what an earlier run learned, or this one."""
        known = self._learned.reasons
        new = learned.reasons.items() - known.items()
        self._notices += [Notice(f"{name} {why}") for name, why in sorted(new)]
        if learned != self._learned:
            before, was_little = self.plan, self._little_compressed()
            self._learned = learned
            self.plan = self._plan(learned)
            self._notices += map(Notice, joined.in_words(self.plan, before))
            little = self._little_compressed()
            self._notices += [Notice(little)] if little and not was_little else []

    @property
    def learned(self) -> Learned:
        """What of the values the plan heeds."""
        return self._learned

    def forget(self) -> None:
        """Plan as before any value was known."""
        self._findings = {}
        self.apply(NOTHING_LEARNED)

    def _plan(self, learned: Learned) -> Plan:
        if learned == NOTHING_LEARNED:
            return self._first_plan
        readers = self._moments.readers if self._moments else ()
        return plan_compression(self.checkpoint, self._recipe, learned, readers)

    def _little_compressed(self) -> str | None:
        return little_compressed(self.plan, self._recipe, self._learned)

    def record(self, finding: Finding) -> None:
        """Remember the gravest finding of each tensor; raise BadInput for one that ends the run."""
        if finding.kind is Kind.NONFINITE and self._recipe.nonfinite == "error":
            raise BadInput(
                f"not a finite weight: {finding.text}",
                file=finding.file,
                tensor=finding.tensor,
                fix="get a sound checkpoint, or --nonfinite keep to store it as it is",
            )
        known = self._findings.setdefault(finding.tensor, finding)
        if finding.gravity < known.gravity:
            self._findings[finding.tensor] = finding

    def replan(self) -> Learned:
        """Plan again: tensors with findings keep their source type, or F32 norms."""
        exact, float32_norms = {}, {}
        quantised = {tensor.info.name for tensor in self.checkpoint.tensors if tensor.pieces}
        for name, finding in sorted(self._findings.items()):
            if finding.kind is Kind.NORM:
                float32_norms[name] = f"keeps F32 norms: {finding.text}"
            else:
                as_what = "as BF16" if name in quantised else "as it is"
                exact[name] = f"kept {as_what}: {finding.text}"
        self.apply(self._learned | Learned(exact, float32_norms))
        return self._learned

    def texts(self) -> dict[str, str]:
        """config.json with the keys by which hosts recognise the folder, where there is one.

        And what else would tell a host of a quantisation that the source had.
        """
        texts = {}
        if self.files.has(CONFIG) and not self._verbatim_config:
            text = read_text(self.files, CONFIG)
            if self.checkpoint.source_quantization:
                text = remove_everywhere(text, is_left_out)
            texts[CONFIG] = mark(text, self._described(None))
        if PARAMS in self.checkpoint.source_quantization and not self.selection.leaves(PARAMS):
            texts[PARAMS] = remove_key(read_text(self.files, PARAMS), IN_PARAMS)
        return texts

    def marker(self, error: MeasuredError | None) -> tuple[str, str]:
        """tq_config.json of the plan as it was carried out."""
        return tq_config.FILE_NAME, self._described(error).to_json()

    def _described(self, error: MeasuredError | None) -> TqConfig:
        model, revision = self.files.origin
        described = describe_compression(
            self.plan,
            self._recipe,
            self._learned,
            model=model,
            revision=revision,
            writer=self.writer,
            error=error,
            factors=self._factors,
            calibration=self._moments.record if self._moments else {},
            source_quantization=self.checkpoint.source_quantization,
        )
        return replace(described, recipe={**(described.recipe or {}), **self.selection.to_record()})
