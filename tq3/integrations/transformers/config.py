"""Tq3Config: what Transformers keeps as `quantization_config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from tq3.errors import BadInput
from tq3.format.config import FILE_NAME, group_of, parse_tq_config
from tq3.format.formats import FORMAT
from tq3.format.recognition import METHOD, QUANTIZATION_CONFIG, quantization_config


class Tq3Config(QuantizationConfigMixin):
    """Format and group size of a TQ3 checkpoint; everything else is in its tensors.

    bits: the width of most tensors, for people. Other keys are kept, and saved again.
    """

    def __init__(
        self,
        bits: int = 3,
        group_size: int = 128,
        format: str = FORMAT,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        self.quant_method = quant_method
        self.format = format
        self.bits = bits
        declared = {"format": format, "group_size": group_size}
        self.group_size = group_of(declared, QUANTIZATION_CONFIG)
        self.__dict__.update(
            {name: value for name, value in others.items() if not hasattr(type(self), name)}
        )

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Tq3Config:
        """That of a checkpoint whose config.json says nothing, from its tq_config.json.

        folder: also an id on the Hub, found as Transformers finds it; options: revision, token,
        cache_dir, local_files_only and the like
        """
        try:
            path = cached_file(folder, FILE_NAME, **options)
        except OSError as error:
            raise BadInput(
                "not a TQ3 checkpoint",
                file=folder,
                expected=f"{FILE_NAME}, or quantization_config in config.json",
                fix="give a folder that `tq3 compress` wrote, or the id of a published one",
            ) from error
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            fix = "fetch the file again"
            raise BadInput(f"not UTF-8: {error}", file=FILE_NAME, fix=fix) from None
        return cls(**quantization_config(parse_tq_config(text)))
