"""A text that the model itself writes: what it says, drawn token by token."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from tq3.errors import UsageError
from tq3.events import Progress


def load_whole(model_class: Any, folder: Path | None, label: str) -> Any:
    """The model with all its weights in memory, to speak. Raises UsageError for one elsewhere."""
    if folder is None:
        raise UsageError(
            "a model speaks with all its weights at once, and they are not on this machine",
            file=label,
            fix="add --download, or calibrate with a text or `random`",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_class.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    return model.to(device).eval()


@torch.inference_mode()
def speak(
    model: Any, first: int, n_sequences: int, context: int
) -> Generator[Progress, None, torch.Tensor]:
    """Sequences that begin with the token `first`, each next one drawn as the model has it.

    The same every time on one machine. An end of text is a token as any other: another text begins
    behind it. Returns (n_sequences, context) int64; progress counts weights that are read.
    """
    generator = torch.Generator(model.device).manual_seed(0)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    ids = torch.full((n_sequences, 1), first, device=model.device)
    last, past, start = ids, None, time.perf_counter()
    while ids.shape[1] < context:
        output = model(input_ids=last, past_key_values=past, use_cache=True)
        past = output.past_key_values
        shares = torch.softmax(output.logits[:, -1].float(), -1)
        last = torch.multinomial(shares, 1, generator=generator)
        ids = torch.cat([ids, last], 1)
        done = (ids.shape[1] - 1) * n_bytes
        total, seconds = (context - 1) * n_bytes, time.perf_counter() - start
        yield Progress(done, 0, total, 0, seconds, f"token {ids.shape[1]} of {context}")
    return ids.cpu()
