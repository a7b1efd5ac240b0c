"""One warning for all tensors that are stored in float16 and served in bfloat16.

vLLM has one for each. Published checkpoints keep every float in float16, most models are bfloat16.
"""

from __future__ import annotations

import logging

import torch
from vllm.model_executor.models import utils

_EACH = "Attempted to load weight %s with dtype %s into "
_ALL = (
    "tq3: what is not packed is stored in float16 and served in bfloat16 (%s is the first); "
    "`tq3 compress --keep-dtype source` stores it in the source's type"
)


class OneForAll(logging.Filter):
    """Lets the first of these warnings through, in words that are true of all."""

    def __init__(self) -> None:
        super().__init__()
        self._has_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of vLLM's loader is shown."""
        if not str(record.msg).startswith(_EACH) or not isinstance(record.args, tuple):
            return True
        name, *dtypes = record.args
        if dtypes != [torch.float16, torch.bfloat16]:
            return True
        is_first, self._has_told = not self._has_told, True
        record.msg, record.args = _ALL, (name,)
        return is_first


def warn_once() -> None:
    """From now on, for what is loaded in this process: it serves a TQ3 checkpoint."""
    log = logging.getLogger(utils.__name__)
    if not any(isinstance(one, OneForAll) for one in log.filters):
        log.addFilter(OneForAll())
