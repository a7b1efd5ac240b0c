"""tq3.load: a TQ3 checkpoint as a Transformers model, packed, in one call."""

from __future__ import annotations

from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tq3.errors import BadInput, UsageError
from tq3.format.recognition import ALIAS, METHOD
from tq3.format.repositories import is_repository_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_PACKAGES = ("accelerate", "safetensors", "torch", "transformers")
# What Transformers takes to find a file, of all that from_pretrained takes.
_FINDING = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def load(
    path: str | PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The model of a TQ3 checkpoint, its compressed weights packed, ready to generate.

    path: a folder, or an id that Transformers finds on the Hub or in its cache
    device: where the whole model goes, by default the processor; `device_map` spreads it
    dtype: of activations and kept weights, by default the one that config.json names
    options: as for from_pretrained of the class that config.json names; with
    `output_loading_info=True` a pair is returned, as from there: the model, and what it tells
    Raises BadInput for what is no TQ3 checkpoint, UsageError where a package is missing.
    """
    transformers, integration = _hosts()
    if device is not None and "device_map" in options:
        raise UsageError("give device or device_map, not both")
    name = fspath(path)
    finding = {key: options[key] for key in _FINDING if key in options}
    config = _config(transformers, name, finding)
    method = _method(config)
    if method is None:
        finding.pop("trust_remote_code", None)
        options["quantization_config"] = integration.Tq3Config.from_folder(name, **finding)
    else:
        _check_method(integration, method, name)
    if device is not None:
        options["device_map"] = {"": device}
    if dtype is not None:
        options["dtype"] = dtype
    is_info_wanted = options.pop("output_loading_info", False)
    model, info = _from_pretrained(_class(transformers, config), name, options)
    if info["missing_keys"]:
        raise BadInput(
            "tensors are missing: Transformers would leave them random",
            file=name,
            found=", ".join(sorted(info["missing_keys"])[:3]),
            fix="fetch the checkpoint again; `tq3 verify` tells what is wrong with it",
        )
    return (model, info) if is_info_wanted else model


def _hosts() -> tuple[Any, Any]:
    """transformers and our part of it: imported here, so that a missing package has a sentence."""
    try:
        transformers = import_module("transformers")
        integration = import_module("tq3.integrations.transformers")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise UsageError(
            f"tq3.load needs the package {error.name}", fix="pip install 'tq3[transformers]'"
        ) from error
    return transformers, integration


def _from_pretrained(kind: Any, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    try:
        found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            name, output_loading_info=True, **options
        )
    except OSError as error:
        if not Path(name).is_dir():
            raise
        raise BadInput(
            "its weights can't be read",
            file=name,
            found=error,
            fix="fetch the checkpoint again; `tq3 verify` tells what is missing",
        ) from error
    return found


def _check_folder(name: str, folder: Path) -> None:
    """Refuse what is neither a folder with a config.json nor can be an id."""
    may_be_id = is_repository_name(name) and not Path(name).exists()
    if may_be_id or (folder / "config.json").is_file():
        return
    details: dict[str, Any] = {"file": folder, "fix": "give a folder that `tq3 compress` wrote"}
    if folder.is_file():
        raise BadInput("a file", file=folder, expected="its folder", fix=f"give {folder.parent}")
    if name.startswith("~"):
        details["fix"] = "give os.path.expanduser(path): only a shell puts your home in its place"
    if not folder.is_dir():
        raise BadInput("no such folder", **details)
    if (folder / "tq_config.json").is_file():
        details["fix"] = "fetch the checkpoint again, or config.json from its source"
        raise BadInput("a checkpoint without its config.json", **details)
    raise BadInput("not a checkpoint", expected="config.json and tq_config.json", **details)


def _config(transformers: Any, name: str, finding: dict[str, Any]) -> PreTrainedConfig:
    folder = Path(name, finding.get("subfolder") or "")
    _check_folder(name, folder)
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(name, **finding)
    except OSError as error:
        if folder.is_dir():
            raise BadInput(
                "can't be read", file="config.json", found=error, fix="fetch the file again"
            ) from error
        raise UsageError(
            "neither a folder nor what Transformers finds on the Hub or in its cache",
            file=name,
            fix="give a folder that `tq3 compress` wrote; what Transformers says is above",
        ) from error
    return config


def _method(config: PreTrainedConfig) -> str | None:
    """The quantization method that the checkpoint names; None in published TQ3 checkpoints."""
    for part in (config, config.get_text_config()):
        declared = getattr(part, "quantization_config", None)
        if isinstance(declared, dict):
            return str(declared.get("quant_method"))
    return None


def _check_method(integration: Any, method: str, name: str) -> None:
    if method not in (METHOD, ALIAS):
        raise BadInput(
            "not a TQ3 checkpoint",
            file=name,
            found=f"quant_method {method!r}",
            expected=repr(METHOD),
            fix="load it with from_pretrained and the package that wrote it",
        )
    if not integration.is_ours(method):
        raise UsageError(
            f"another package has registered {method!r} with Transformers",
            fix="import tq3.integrations.transformers before that package, or without it",
        )


def _class(transformers: Any, config: PreTrainedConfig) -> Any:
    """The class that config.json names; else that of the checkpoint's own code, by its `auto_map`;
    else the one for language models.
    """
    names = config.architectures or []
    known = next((name for name in names if hasattr(transformers, name)), None)
    return getattr(transformers, known or _automatic(transformers, config, names))


def _automatic(transformers: Any, config: PreTrainedConfig, names: list[str]) -> str:
    """The class for what config.json names, of several that `auto_map` has for models."""
    auto_map = getattr(config, "auto_map", None)
    entries = auto_map.items() if isinstance(auto_map, dict) else ()
    classes = {
        key: str(reference).rpartition(".")[2]
        for key, reference in entries
        if key.startswith("AutoModel") and hasattr(transformers, key)
    }
    named = [key for key, name in classes.items() if name in names]
    candidates = named or list(classes)
    language = "AutoModelForCausalLM"
    return language if language in candidates or not candidates else candidates[0]
