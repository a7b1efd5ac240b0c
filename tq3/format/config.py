"""tq_config.json: what a TQ3 checkpoint says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from tq3.errors import BadInput, UsageError
from tq3.format.equalization import Factors, factors_from_record, factors_record
from tq3.format.formats import FORMATS, code_of, refuse_trellis
from tq3.format.json_reading import parse_object
from tq3.format.recipe import GROUP_SIZES, Code, GroupSize, Recipe
from tq3.format.widths import WIDTHS, parse_widths

FILE_NAME = "tq_config.json"
FORMAT_VERSION = 1
QUANTIZER_SEED = 42
_NO_RECIPE = "tq3.recipe is not a recipe"
_REPAIR = "compress again, or fetch tq_config.json again from where it was published"
# What recipes meant that were recorded before there was a choice.
_BEFORE = {"scale": "norm", "equalize": False}
_NAMES = {int: "a whole number below 2**63", str: "a text", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class MeasuredError:
    """Relative squared error ||w - decode(encode(w))||^2 / ||w||^2 over the compressed tensors.

    Each is measured on its first groups.
    """

    mean: float
    worst: float
    worst_tensor: str


@dataclass(frozen=True, slots=True)
class TqConfig:
    """The content of tq_config.json.

    original_in_dims: name -> columns, for tensors whose columns are no multiple of the group
    shapes: name -> source shape, where it can't be derived from the stored tensors (3-D, padded)
    kept_source_dtype: name -> reason, for floats that are not F16 because of their values
    float32_norms: name -> reason, for norms that are not FP16 because of their values
    factors: of channels, where columns were equalized
    calibration: facts of the second moments under which codes were chosen, where they were, and
    as `without` the compressed tensors that had none
    code: what codes of some tensor stand for, "scalar" where none are of a trellis
    source_quantization: how the source's weights were stored, where they were quantised
    """

    bits: int
    group_size: GroupSize
    compressed_layers: int | None = None
    original_model: str | None = None
    original_in_dims: Mapping[str, int] = field(default_factory=dict)
    sensitive_bits: int | None = None
    sensitive_patterns: tuple[str, ...] = ()
    writer: str | None = None
    source_revision: str | None = None
    source_dtype: str | None = None
    source_bytes: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kept_source_dtype: Mapping[str, str] = field(default_factory=dict)
    float32_norms: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    measured_error: MeasuredError | None = None
    factors: Factors = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    source_quantization: Mapping[str, Any] = field(default_factory=dict)
    code: Code = "scalar"

    def width_by_name(self, name: str) -> int:
        """The width that existing readers take: they know two, the second by parts of names."""
        is_special = any(text in name for text in self.sensitive_patterns)
        return self.sensitive_bits if self.sensitive_bits and is_special else self.bits

    def to_json(self) -> str:
        """The file's text: keys that existing readers know at the top, ours in `tq3`."""
        known: dict[str, Any] = {
            "bits": self.bits,
            "group_size": self.group_size,
            "format": FORMATS[self.code],
            "quantizer_seed": QUANTIZER_SEED,
            "compressed_layers": self.compressed_layers,
            "original_model": self.original_model,
        }
        if self.original_in_dims:
            known["orig_in_dims"] = dict(self.original_in_dims)
        if self.sensitive_bits is not None:
            known["sensitive_bits"] = self.sensitive_bits
            known["sensitive_patterns"] = list(self.sensitive_patterns)
        known["tq3"] = {
            "format_version": FORMAT_VERSION,
            "writer": self.writer,
            "source_revision": self.source_revision,
            "source_dtype": self.source_dtype,
            "source_bytes": self.source_bytes,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "kept_source_dtype": dict(self.kept_source_dtype),
            "float32_norms": dict(self.float32_norms),
            "recipe": self.recipe,
            "measured_error": asdict(self.measured_error) if self.measured_error else None,
        }
        if self.factors:
            known["tq3"]["equalization"] = factors_record(self.factors)
        if self.calibration:
            known["tq3"]["calibration"] = dict(self.calibration)
        if self.source_quantization:
            known["tq3"]["source_quantization"] = dict(self.source_quantization)
        text = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
        # A folder after which the model is named need not be called in UTF-8.
        return text.encode("utf-8", "replace").decode("utf-8")


def parse_tq_config(text: str) -> TqConfig:
    """Read tq_config.json of ours or of an existing writer. Raises BadInput."""
    return _from_object(parse_object(text, FILE_NAME))


def find_in_model_config(model_config: Mapping[str, Any]) -> TqConfig | None:
    """The record in config.json that stands in for a missing tq_config.json. Raises BadInput.

    Without `tq3`, which has the shapes, a padded tensor could not be told from a wider one.
    """
    declared = model_config.get("quantization_config")
    if not isinstance(declared, dict) or "tq3" not in declared:
        return None
    try:
        return _from_object(declared)
    except BadInput as error:
        before = f"quantization_config, in place of {FILE_NAME}"
        raise BadInput.retold(error, before, file="config.json", fix=error.fix) from None


def group_of(declared: Mapping[str, Any], file: str = FILE_NAME) -> GroupSize:
    """The group size in tq_config.json, or in config.json, of codes that hosts can serve packed.

    Raises BadInput for another format.
    """
    refuse_trellis(declared.get("format"), file)
    group: GroupSize = _choice(declared, "group_size", GROUP_SIZES, file)
    return group


def _from_object(raw: Mapping[str, Any]) -> TqConfig:
    code = code_of(raw.get("format"), FILE_NAME)
    group: GroupSize = _choice(raw, "group_size", GROUP_SIZES)
    ours = _typed(raw, "tq3", dict, {})
    version = _typed(ours, "format_version", int, FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise BadInput(
            "written by a newer tq3",
            file=FILE_NAME,
            found=f"format version {version}",
            expected=f"at most {FORMAT_VERSION}",
            fix="pip install -U tq3",
        )
    _check_seed(raw)
    shapes = _typed(ours, "shapes", dict, {})
    return TqConfig(
        bits=_choice(raw, "bits", WIDTHS),
        group_size=group,
        compressed_layers=_typed(raw, "compressed_layers", int, None),
        original_model=_typed(raw, "original_model", str, None),
        original_in_dims=_items(raw, "orig_in_dims", dict, int),
        sensitive_bits=_choice(raw, "sensitive_bits", (None, *WIDTHS)),
        sensitive_patterns=tuple(_items(raw, "sensitive_patterns", list, str)),
        writer=_typed(ours, "writer", str, None),
        source_revision=_typed(ours, "source_revision", str, None),
        source_dtype=_typed(ours, "source_dtype", str, None),
        source_bytes=_typed(ours, "source_bytes", int, None),
        shapes={name: _shape(name, shape) for name, shape in shapes.items()},
        kept_source_dtype=_items(ours, "kept_source_dtype", dict, str),
        float32_norms=_items(ours, "float32_norms", dict, str),
        recipe=_typed(ours, "recipe", dict, None),
        measured_error=_measured_error(_typed(ours, "measured_error", dict, None)),
        factors=factors_from_record(_items(ours, "equalization", dict, str), FILE_NAME),
        calibration=_calibration(_typed(ours, "calibration", dict, {})),
        source_quantization=_typed(ours, "source_quantization", dict, {}),
        code=code,
    )


def stand_in(shapes: Mapping[str, tuple[int, ...]], factors: Factors) -> dict[str, Any]:
    """`tq3` of a quantization_config that `find_in_model_config` reads.

    shapes: name -> source shape, where it can't be derived from the stored tensors
    factors: by the source's names
    """
    equalization = {"equalization": factors_record(factors)} if factors else {}
    return {
        "format_version": FORMAT_VERSION,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        **equalization,
    }


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON, as tq_config.json keeps it."""
    widths = recipe.widths and {"name": recipe.widths.name, **recipe.widths.to_record()}
    values = {option.name: getattr(recipe, option.name) for option in fields(Recipe)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in {**values, "widths": widths}.items()
    }


def recipe_from_record(record: Mapping[str, Any]) -> Recipe:
    """The inverse of `recipe_record`, for older records too. Raises BadInput.

    Keys of later versions are ignored.
    """
    record = {**_BEFORE, **record}
    options: dict[str, Any] = {
        option.name: tuple(value) if isinstance(value, list) else value
        for option in fields(Recipe)
        if (value := record.get(option.name)) is not None
    }
    try:
        if "widths" in options:
            found = dict(_typed(record, "widths", dict, {}))
            options["widths"] = parse_widths(found, str(found.pop("name", "?")), FILE_NAME)
        return Recipe(**options)
    except (BadInput, UsageError) as error:
        raise BadInput.retold(error, _NO_RECIPE, file=FILE_NAME, fix=_REPAIR) from None
    except (TypeError, ValueError) as error:
        raise BadInput(f"{_NO_RECIPE}: {error}", file=FILE_NAME, fix=_REPAIR) from None


def _typed(raw: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = raw.get(key)
    if value is None:
        return default
    if not _is_a(value, kind):
        found, expected = value if isinstance(value, int) else type(value).__name__, _NAMES[kind]
        raise BadInput(f"{key} has the wrong type", file=FILE_NAME, found=found, expected=expected)
    return value


def _items(raw: Mapping[str, Any], key: str, container: type, kind: type) -> Any:
    """A list or an object whose items are all of `kind`; empty where the key is missing."""
    value = _typed(raw, key, container, container())
    items = value.values() if container is dict else value
    if not all(_is_a(item, kind) for item in items):
        raise BadInput(f"{key} has a wrong item", file=FILE_NAME, expected=_NAMES[kind])
    return value


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value is of this very type (true is no number) and, as a number, fits a file."""
    if type(value) is not kind:
        return False
    return not isinstance(value, int) or 0 <= value < 2**63


def _choice(
    raw: Mapping[str, Any], key: str, choices: tuple[int | None, ...], file: str = FILE_NAME
) -> Any:
    """One of `choices`; None among them where the key may be missing."""
    value = raw.get(key)
    if value not in choices or isinstance(value, bool):
        allowed = " or ".join(str(choice) for choice in choices if choice is not None)
        raise BadInput(f"bad {key}", file=file, found=value, expected=allowed)
    return None if value is None else int(value)


def _check_seed(raw: Mapping[str, Any]) -> None:
    """Signs are constants: other ones would decode to other weights, of the right size."""
    _choice(raw, "quantizer_seed", (None, QUANTIZER_SEED))


def _calibration(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if record:
        _items(record, "without", list, str)
    return record


def _measured_error(record: Mapping[str, Any] | None) -> MeasuredError | None:
    if record is None:
        return None
    mean, worst, tensor = (record.get(key.name) for key in fields(MeasuredError))
    if not (isinstance(mean, float) and isinstance(worst, float) and isinstance(tensor, str)):
        raise BadInput("tq3.measured_error: not two numbers and a tensor", file=FILE_NAME)
    if not (isfinite(mean) and isfinite(worst)):
        raise BadInput("tq3.measured_error is not finite", file=FILE_NAME)
    return MeasuredError(mean, worst, tensor)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    is_shape = isinstance(shape, list) and all(_is_a(n, int) for n in shape)
    if not is_shape or len(shape) not in (2, 3):
        raise BadInput("tq3.shapes: not a shape", file=FILE_NAME, tensor=name, found=shape)
    return tuple(shape)
