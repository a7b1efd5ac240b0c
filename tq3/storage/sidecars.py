"""Which files travel along with the weights, and which stay behind and why.

Weights stay behind where they are this model once more, or where a host would load them with it.
Any other ones are a part that a host asks for, such as a module of sentence-transformers, a speech
tokenizer or voices: they travel, as all does that is no weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from tq3.errors import UsageError
from tq3.format.weight_files import indexed
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.selection import BY_POLICY, Selection

# A checkpoint's card on the Hub, and in a TQ3 checkpoint the card of the model it was made from:
# there README.md is the compressed model's own, which people write and edit.
CARD = "README.md"
SOURCE_CARD = "README.source.md"
# Files that get another name in a TQ3 checkpoint.
RENAMED = MappingProxyType({CARD: SOURCE_CARD})
_CACHES = ("__pycache__", "node_modules")

_ADAPTER = "an adapter's: hosts would attach it to the model"
_TRAINING = "the state of a training"
_COPY = "other weights of this model"
_UNKNOWN = "weights that are not part of this checkpoint, and hosts would load them"
_WITHOUT = "asked for by --without"


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern for whole names, in which a line may end, and of any case, as on some disks."""
    return re.compile(text, re.DOTALL | re.IGNORECASE)


# What holds a whole model, whatever its name, and what may hold anything: then the name tells.
_WHOLE = r"gguf|ggml|h5|msgpack|ot|tflite|mlmodel|nemo|ckpt"
_ANY = r"safetensors|bin|pt|pth|onnx|onnx_data(_\d+)?|npz|pkl|pickle"
_WEIGHTS = _pattern(rf".*\.({_WHOLE}|{_ANY})")
_MODEL = (
    r"((pytorch|tf|flax|rust|openvino|diffusion_pytorch|encoder|decoder|decoder_with_past)_)?"
    r"(model|weights|consolidated)([-_.].+)?"
)
# Files at the top: pattern of the whole name -> why it stays behind. The first that fits counts.
_AT_THE_TOP = (
    (_pattern(r"adapter_(config\.json|model[-.].+)"), _ADAPTER),
    (
        _pattern(
            r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)(_\d+)?"
            r"\.(bin|pt|pth|pkl)|((bf16_)?zero_pp|mp)_rank_.+\.pt"
        ),
        _TRAINING,
    ),
    (_pattern(rf".*\.({_WHOLE})|{_MODEL}\.({_ANY})"), _COPY),
    (_pattern(r"hf_quant_config\.json"), "says how the source is quantised"),
    # vLLM and SGLang take the files of a folder by these suffixes.
    (_pattern(r".*\.(safetensors|bin)"), _UNKNOWN),
)
# Folders at the top that stay behind whole if there are weights in them: what lies beside belongs
# to those.
_FOLDERS = (
    (
        _pattern(
            r"(onnx|openvino|coreml|tflite|litert|gguf|ggml|mlx)([-_.].+)?"
            r"|original|metal|flax|tf|torchscript|tensorrt|trt|neuron|executorch"
            r"|quantized|awq|gptq|exl2|exl3|fp8|fp16|bf16|fp32|int4|int8|4bit|8bit"
            r"|.+\.(mlpackage|mlmodelc)"
        ),
        f"in a folder of {_COPY}",
    ),
    (
        _pattern(
            r"checkpoint-\d+|last-checkpoint|global_step\d+|(pytorch_model_fsdp|optimizer)_\d+"
        ),
        f"in a folder of {_TRAINING}",
    ),
)


@dataclass(frozen=True, slots=True)
class Sidecars:
    """Files copied byte for byte, relative path -> name of the copy; files left out -> why."""

    copied: dict[str, str]
    left_out: dict[str, str]

    @property
    def weights(self) -> list[str]:
        """The weights among what is copied."""
        return [name for name in self.copied if is_weight_file(name)]

    @property
    def doubtful(self) -> dict[str, str]:
        """The files that are left out although this model may need them."""
        return {name: why for name, why in self.left_out.items() if why in (_ADAPTER, _UNKNOWN)}


def choose_sidecars(
    names: Iterable[str],
    accounted: Iterable[str],
    renamed: Mapping[str, str] | None = None,
    selection: Selection = BY_POLICY,
    listed: Collection[str] = (),
    copies: Collection[str] = (),
) -> Sidecars:
    """Split the names of `LocalFiles.tree`. Raises UsageError for a glob that matches nothing.

    accounted: what the caller writes or replaces itself
    renamed: file -> name of its copy; what has that name already stays behind
    listed: files of a checkpoint's manifest, which are part of it whatever they are
    copies: files that are known to hold this model once more, whatever their names
    """
    known = set(accounted)
    rest = [name for name in names if name not in known]
    left_out = {name: why for name in rest if (why := _why_never(name))}
    choice = [name for name in rest if name not in left_out]
    selection.check(choice)
    holding = {PurePosixPath(name).parts[0] for name in choice if _is_nested_weights(name)}
    for name in choice:
        if selection.leaves(name):
            left_out[name] = _WITHOUT
        elif name in listed or selection.takes(name):
            continue
        elif why := _why_left_out(name, holding, copies):
            left_out[name] = why
    left_out |= _adapter_without_weights(choice, left_out, selection)
    new_names = {name: new for name, new in (renamed or {}).items() if name in rest}
    left_out |= {new: f"{name} takes its name" for name, new in new_names.items() if new in rest}
    return Sidecars(
        {name: new_names.get(name, name) for name in rest if name not in left_out},
        {name: left_out[name] for name in rest if name in left_out},
    )


def is_weight_file(name: str) -> bool:
    """Whether a file holds weights, or is the index of some, in any format."""
    last = PurePosixPath(name).name
    return _WEIGHTS.fullmatch(indexed(last) or last) is not None


def is_loaded_by_hosts(name: str) -> bool:
    """Whether a host may load a file at the top of a folder with the checkpoint that lies there.

    That is weights, an index or an adapter's config; not those that only the model's code asks for.
    """
    return "/" not in name and _at_the_top(name) not in (None, _TRAINING)


def _why_never(name: str) -> str | None:
    """Why it can't travel, whoever asks for it."""
    if name.endswith("/"):
        return "a link to a folder"
    return "a draft of another run" if WORK_FOLDER in PurePosixPath(name).parts else None


def _why_left_out(name: str, holding: set[str], copies: Collection[str]) -> str | None:
    """Why a file stays behind that nobody asks for."""
    if name in copies:
        return _COPY
    first, *deeper = parts = PurePosixPath(name).parts
    if any(part.startswith(".git") for part in parts):
        return "belongs to git"
    if any(part in _CACHES or part.startswith(".cache") for part in parts):
        return "a cache"
    if not deeper:
        return _at_the_top(name)
    return _first(_FOLDERS, first) if first in holding else None


def _adapter_without_weights(
    choice: Iterable[str], left_out: Mapping[str, str], asked: Selection
) -> dict[str, str]:
    """An adapter's config whose weights do not travel: hosts would look for them elsewhere.

    Raises UsageError where it is asked for.
    """
    adapter = [name for name in choice if _at_the_top(name) == _ADAPTER]
    travels = [name for name in adapter if name not in left_out]
    if any(is_weight_file(name) for name in travels):
        return {}
    for name in travels:
        if asked.takes(name):
            weights = [each for each in adapter if is_weight_file(each)]
            raise UsageError(
                "--also takes an adapter's config without the adapter's weights",
                file=name,
                found=", ".join(weights[:3]) or "no weights of an adapter",
                fix=f"take the weights, too, or leave it out: --without {name}",
            )
    return dict.fromkeys(travels, _ADAPTER)


def _at_the_top(name: str) -> str | None:
    return _first(_AT_THE_TOP, indexed(name) or name)


def _first(patterns: Iterable[tuple[re.Pattern[str], str]], name: str) -> str | None:
    return next((why for pattern, why in patterns if pattern.fullmatch(name)), None)


def _is_nested_weights(name: str) -> bool:
    return "/" in name and is_weight_file(name)
