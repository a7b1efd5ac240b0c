"""The classes by which tensors are counted and shown: attention, MLP, experts and so on."""

from __future__ import annotations

import re

# First match wins: a vision tower has attention of its own, an MTP layer has experts of its own.
_CLASSES = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        ("vision", r"(^|\.)(visual|vision|vision_tower|vision_model|vision_encoder)\."),
        ("MTP", r"(^|\.)mtp(_\w+)?\."),
        (
            "embeddings",
            r"(^|\.)((\w+_)?embed(ding|dings)?(_\w{1,50})?|wte|wpe|shared|lm_head|embed_out)"
            r"\.weight",
        ),
        ("experts", r"(^|\.)(experts|shared_experts?)\."),
        ("linear attention", r"(^|\.)(linear_attn|mamba|mixer|ssm)\."),
        ("attention", r"(^|\.)(\w+_)?(attn|attention)\."),
        ("MLP", r"(^|\.)(mlp|ffn|feed_forward|block_sparse_moe)\."),
    )
)
OTHER = "other"
LABELS = (*(label for label, _ in _CLASSES), OTHER)


def class_of(name: str) -> str:
    """The label of the class that tensor `name` belongs to."""
    return next((label for label, pattern in _CLASSES if pattern.search(name)), OTHER)
