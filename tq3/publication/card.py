"""The model card of a TQ3 checkpoint, from what the checkpoint itself says."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tq3.errors import UsageError
from tq3.format.arguments import of_its_types
from tq3.format.command_line import command_options
from tq3.format.config import MeasuredError, TqConfig, recipe_from_record, recipe_record
from tq3.format.files import CONFIG, read_object
from tq3.format.options import StrPath
from tq3.format.quality import quality_rows, read_quality
from tq3.format.recipe import Recipe
from tq3.format.repositories import check_repository_name
from tq3.hub.metadata import is_model_id, make_metadata, metadata_block, read_metadata
from tq3.pipelines.describe import describe
from tq3.pipelines.description import Description
from tq3.plan.restoring import read_tq_config
from tq3.publication.template import fill_in, read_template
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import SOURCE_CARD
from tq3.units import count, printable, size

_UNKNOWN = "not recorded"
# How the sentence on the norms ends.
_SCALES = {
    "norm": ", corrected so that the decoded group has the norm of the original",
    "search": "; of several scales for the codes the one with the smallest error was kept",
}

_EQUALIZED = (
    "Columns are equalized: factors that cancel moved between the weights of neighbouring layers "
    "before they were coded. The model computes the source's function by other "
    "weights, so an adapter that was trained beside the source's own does not fit this model."
)


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts of a card, apart from the name under which it is published.

    base_model: ORGANISATION/NAME on the Hub, None where nothing tells it
    source_metadata: of the source's card
    recognised: whether config.json tells hosts what the folder is
    """

    description: Description
    config: TqConfig
    base_model: str | None
    source_metadata: dict[str, Any]
    quality: Mapping[str, Any] | None
    recognised: bool


@of_its_types
def make_card(
    path: StrPath,
    repo_id: str | None = None,
    *,
    base_model: str | None = None,
    template: StrPath | None = None,
) -> str:
    """The model card of the TQ3 checkpoint `path`.

    repo_id: where it will be; the folder's name is used where it is None
    base_model: what it was made from, as ORGANISATION/NAME; where None, what compress recorded
    template: a file to use instead of ours. Raises BadInput, UsageError or StorageError.
    """
    if repo_id is not None:
        check_repository_name(repo_id)
    with LocalFiles(path) as files:
        facts = gather_facts(files, base_model)
        name = repo_id if repo_id is not None else files.folder.resolve().name
        return write_card(facts, name, Path(template) if template else None)


def gather_facts(files: LocalFiles, base_model: str | None) -> CardFacts:
    """The facts of the folder's card. Raises BadInput or StorageError."""
    if base_model is not None and not is_model_id(base_model):
        raise UsageError(
            "--base-model is no name of the Hub", found=base_model, expected="ORG/NAME"
        )
    model_config = read_object(files, CONFIG) if files.has(CONFIG) else {}
    config = read_tq_config(files, model_config)
    recorded = config.original_model
    told = recorded if recorded and is_model_id(recorded) else None
    return CardFacts(
        description=describe(files, Recipe(), workers=1),
        config=config,
        base_model=base_model or told,
        source_metadata=read_metadata(_source_card(files), SOURCE_CARD),
        quality=read_quality(files),
        recognised="quantization_config" in model_config,
    )


def write_card(facts: CardFacts, repo_id: str, template: Path | None) -> str:
    """The card for a repository. Raises UsageError for a template that asks for something else."""
    d, config = facts.description, facts.config
    if config.code == "trellis" and not template:
        raise UsageError(
            "our card says how a model is served, and no host serves codes of a trellis yet",
            fix="give a card of your own with --template, or compress with --code scalar",
        )
    n_weights = sum(line.n_weights for line in d.tensors)
    metadata = make_metadata(facts.source_metadata, facts.base_model, d.bits)
    values = {
        "metadata": metadata_block(metadata),
        "title": repo_id.rpartition("/")[2],
        "name": repo_id.rpartition("/")[2],
        "repo_id": repo_id,
        "base": _base(facts),
        "bits": d.widths_text,
        "group_size": str(d.group_size),
        "source_size": size(d.source_bytes) if d.source_bytes else _UNKNOWN,
        "size": size(d.n_bytes),
        "ratio": _ratio(d),
        "source_bits_per_weight": _bits(d.source_bytes, n_weights),
        "bits_per_weight": _bits(d.n_bytes, n_weights),
        "compressed_bits_per_weight": _compressed_bits(d),
        "n_compressed": f"{d.n_compressed:,}",
        "n_kept": f"{d.n_kept:,}",
        "classes": _classes(d),
        "kept": _kept(d),
        "error": _error(config.measured_error),
        "quality": _quality(facts.quality),
        "scale": _SCALES[d.scale or "norm"] + _calibration(d.calibration),
        "readers": _readers(d),
        "columns": _EQUALIZED if d.equalized else "",
        "how": _how(facts),
        "serve_command": f"vllm serve {repo_id}" + _flag(facts.recognised),
    }
    return fill_in(read_template(template), values)


def _source_card(files: LocalFiles) -> str:
    if not files.has(SOURCE_CARD):
        return ""
    return files.read(SOURCE_CARD, 0, files.size(SOURCE_CARD)).decode("utf-8", "replace")


def _base(facts: CardFacts) -> str:
    if facts.base_model:
        return f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    return f"`{_cell(facts.config.original_model or 'a model that was not recorded')}`"


def _calibration(record: Mapping[str, Any]) -> str:
    """How the sentence on the norms goes on where codes were calibrated."""
    if not record:
        return ""
    text = record.get("text")
    source = "drawn at random" if text == "random" else f"of `{_cell(str(text))}`"
    return (
        ". Codes were chosen for what the weights multiply (LDLQ), as "
        f"{record.get('tokens')} tokens {source} showed it"
    )


def _readers(d: Description) -> str:
    if not d.choice.obstacles:
        return "Other readers of the published format can load it, too."
    if d.code == "trellis":
        return "No host can load it yet: `tq3 restore` makes an ordinary checkpoint of it."
    return f"Readers of other makes can't load it: {'; '.join(map(_cell, d.choice.obstacles))}."


def _ratio(d: Description) -> str:
    if not d.source_bytes or not d.n_bytes:
        return f"ratio {_UNKNOWN}"
    return f"{d.source_bytes / d.n_bytes:.2f} times smaller"


def _bits(n_bytes: int | None, n_weights: int) -> str:
    return f"{n_bytes * 8 / n_weights:.2f}" if n_bytes and n_weights else _UNKNOWN


def _compressed_bits(d: Description) -> str:
    compressed = [line for line in d.tensors if line.bits is not None]
    n_weights = sum(line.n_weights for line in compressed)
    return _bits(sum(line.n_bytes for line in compressed), n_weights) if compressed else "-"


def _classes(d: Description) -> str:
    rows = (
        (
            line.label,
            str(line.n_compressed),
            str(line.n_kept),
            count(line.n_weights),
            size(line.n_bytes),
            f"{line.bits_per_weight:.2f}",
        )
        for line in d.classes
    )
    return _table(("class", "compressed", "kept", "weights", "size", "bits a weight"), rows)


def _kept(d: Description) -> str:
    rows = ((why, str(n), size(n_bytes)) for why, (n, n_bytes) in d.kept_reasons.items())
    return _table(("kept because", "tensors", "size"), rows) if d.kept_reasons else ""


def _error(error: MeasuredError | None) -> str:
    if error is None:
        return "The error of this checkpoint was not recorded when it was written."
    return (
        f"Relative squared error of the compressed weights: mean {error.mean:.4f}, worst "
        f"{error.worst:.4f} in `{_cell(error.worst_tensor)}`, each tensor measured on its first "
        "groups while it was compressed."
    )


def _quality(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return ""
    text, tokens, context = (_cell(str(figures.get(k))) for k in ("text", "n_tokens", "context"))
    how = f"`tq3 eval`, text {text}: {tokens} tokens in sequences of {context}."
    rows = list(quality_rows(figures.get("measures")))
    return f"## Quality\n\n{how}\n\n" + _table(("", "source", "here"), rows)


def _how(facts: CardFacts) -> str:
    config = facts.config
    revision = f" at revision `{_cell(config.source_revision)}`" if config.source_revision else ""
    made = f"by {_cell(config.writer or 'an unnamed writer')} from {_base(facts)}{revision}."
    if config.recipe is None:
        return made[0].upper() + made[1:]
    command = _command(facts, config.recipe)
    same = "The same command gives the same bytes on any machine"
    if config.calibration:
        same += ", under the same moments"
    return f"```\n{command}\n```\n\n{made} {same}."


def _command(facts: CardFacts, record: Mapping[str, Any]) -> str:
    """What writes this checkpoint again."""
    config = facts.config
    source = facts.base_model or config.original_model or "SOURCE"
    record = {**record, **recipe_record(recipe_from_record(record))}  # of any version
    words = ["tq3", "compress", source, "OUT", *command_options(record)]
    if config.calibration:
        words += ["--calibrate", str(config.calibration.get("text"))]
    if facts.base_model and config.source_revision:
        words += ["--revision", config.source_revision]
    if not facts.recognised:
        words.append("--verbatim-config")
    return printable(shlex.join(words))


def _flag(recognised: bool) -> str:
    return "" if recognised else " --quantization tq3"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text that ends neither its cell nor its line, nor what it is quoted by."""
    return printable(text).replace("|", "\\|").replace("`", "'")
