"""`import tq3.integrations.transformers`: after it, from_pretrained serves TQ3 checkpoints packed.

Without it Transformers ends with an error where config.json has the sentence of `recognition`, and
else leaves every compressed layer random.
"""

from __future__ import annotations

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils import logging

from tq3.format.recognition import ALIAS, METHOD
from tq3.integrations.transformers import experts
from tq3.integrations.transformers.config import Tq3Config
from tq3.integrations.transformers.quantizer import Tq3Quantizer

__all__ = ["Tq3Config", "Tq3Quantizer", "is_ours", "register"]

_log = logging.get_logger(__name__)


def register() -> None:
    """Register both names of the method, where no other package has; again, it does nothing."""
    for name in (METHOD, ALIAS):
        if name not in AUTO_QUANTIZATION_CONFIG_MAPPING and name not in AUTO_QUANTIZER_MAPPING:
            register_quantization_config(name)(Tq3Config)
            register_quantizer(name)(Tq3Quantizer)
        elif not is_ours(name):
            _log.warning(
                f"tq3: another package has registered the quantization method {name!r} with "
                f"Transformers and stays in charge of it: {AUTO_QUANTIZER_MAPPING.get(name)}"
            )
    experts.register()


def is_ours(name: str) -> bool:
    """Whether Transformers asks this package about the quantization method `name`."""
    return (
        AUTO_QUANTIZATION_CONFIG_MAPPING.get(name) is Tq3Config
        and AUTO_QUANTIZER_MAPPING.get(name) is Tq3Quantizer
    )


register()
