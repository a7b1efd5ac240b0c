"""What Transformers knows of a checkpoint: its configuration, its model's class, its tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig

from tq3.errors import BadInput, Tq3Error, UsageError
from tq3.format.files import CONFIG, Source
from tq3.storage.sidecars import choose_sidecars, is_weight_file

_TOO_LARGE = 128 * 2**20


@contextmanager
def small_files(files: Source) -> Iterator[Path]:
    """A folder with everything but weights: the checkpoint's own, or copies of what the Hub has."""
    if files.folder:
        yield files.folder
        return
    with tempfile.TemporaryDirectory(prefix="tq3-") as made:
        for name in choose_sidecars(files.tree(), ()).copied:
            is_small = not is_weight_file(name) and files.size(name) < _TOO_LARGE
            if "/" not in name and is_small:
                Path(made, name).write_bytes(b"".join(files.parts(name)))
        yield Path(made)


def find_config(folder: Path, label: str) -> PreTrainedConfig:
    """The configuration that a folder's config.json has in Transformers; label: its name in errors.

    Raises UsageError for an architecture that Transformers does not know, BadInput without the
    file.
    """
    if not (folder / CONFIG).is_file():
        raise BadInput("no config.json", file=label, fix="fetch the checkpoint again")
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unknown(label, error) from error
    return config


def find_class(config: PreTrainedConfig, label: str) -> Any:
    """The class that config.json names, or the one for language models. Raises UsageError."""
    known = (getattr(transformers, name, None) for name in config.architectures or [])
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    found = next((each for each in known if each), causal)
    if found is None:
        raise _unknown(label, f"architectures {config.architectures}")
    if config.is_encoder_decoder or not found.can_generate():
        raise UsageError(
            "this model does not predict the next token of a text",
            file=label,
            found=found.__name__,
            expected="a language model, or one with other inputs beside text",
        )
    return found


def find_tokenizer(folder: Path, label: str) -> Any:
    """The folder's tokenizer. Raises UsageError where there is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Whatever a broken tokenizer file makes the host raise; TypeError, KeyError and others occur.
    except Exception as error:
        raise _no_tokenizer(label, str(error).partition("\n")[0]) from error
    # Of some models the host makes one without a vocabulary where there is no file.
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise _no_tokenizer(label, "none of its files")
    return tokenizer


def _no_tokenizer(label: str, found: str) -> Tq3Error:
    return UsageError(
        "no tokenizer that Transformers can load",
        file=label,
        found=found,
        expected="tokenizer.json or the files of another tokenizer",
        fix="put the model's tokenizer files into the folder",
    )


def _unknown(label: str, error: object) -> Tq3Error:
    return UsageError(
        f"Transformers {transformers.__version__} can't build this model",
        file=label,
        found=str(error).partition("\n")[0],
        fix="update Transformers; models that bring their own code can't be evaluated",
    )
