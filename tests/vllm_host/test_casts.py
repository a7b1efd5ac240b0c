"""What vLLM's log says of tensors that it holds in another dtype than their file."""

from __future__ import annotations

import logging

import pytest
import torch
from vllm.model_executor.models import utils

from tq3.integrations.vllm.casts import OneForAll, warn_once

pytestmark = pytest.mark.vllm

EACH = "Attempted to load weight %s with dtype %s into parameter with dtype %s"


def test_one_warning_stands_for_all_kept_tensors_and_others_stay_as_they_are(monkeypatch):
    log, said = logging.getLogger(utils.__name__), []
    monkeypatch.setattr(log, "filters", [])  # an engine of another test may have put its own there
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    log.addHandler(handler)
    warn_once()
    warn_once()
    assert sum(isinstance(one, OneForAll) for one in log.filters) == 1
    for name in ("norm.weight", "embed_tokens.weight"):
        log.warning(EACH, name, torch.float16, torch.bfloat16)
    log.warning(EACH, "codes", torch.uint8, torch.bfloat16)
    log.warning("something else of %s", "norm.weight")
    log.removeHandler(handler)
    assert said == [
        "tq3: what is not packed is stored in float16 and served in bfloat16 (norm.weight is the "
        "first); `tq3 compress --keep-dtype source` stores it in the source's type",
        EACH % ("codes", torch.uint8, torch.bfloat16),
        "something else of norm.weight",
    ]
