"""Where in a model a tensor lies: attention, MLP, experts and so on, by which tables count.

Patterns match whole components of a name; `roles.py` says what a tensor does at its place.
"""

from __future__ import annotations

import re

TOKEN_EMBEDDING = (
    r"(^|\.)((\w+_)?(embed(ding|dings)?|embed_in|embed_tokens(_\w{1,50})?)|wte)\.weight$"
    r"|^(model\.)?shared\.weight$"  # only at the top of a model is this T5's embedding
)
POSITION_EMBEDDING = (
    r"(^|\.)((\w+_)?(pos|position|positional)_embed(ding|dings)?|embed_positions|wpe)\.weight$"
)
# A head over a vocabulary; `output` at the top is the one of Meta's files.
LM_HEAD = (
    r"(^|\.)(lm_head(\.linear|\.decoder)?|predictions\.decoder|embed_out)\.weight$"
    r"|^(model\.)?output\.weight$"
)

VISION, MTP, EMBEDDINGS, EXPERTS = "vision", "MTP", "embeddings", "experts"
LINEAR_ATTENTION, ATTENTION, MLP, OTHER = "linear attention", "attention", "MLP", "other"

# First match wins: a vision tower has attention of its own, an MTP layer has experts of its own.
_CLASSES = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        (
            VISION,
            r"(^|\.)(visual|vision|vision_tower|vision_model|vision_encoder"
            r"|multi_modal_projector|mm_projector)\.",
        ),
        (MTP, r"(^|\.)mtp(_\w+)?\."),
        (EMBEDDINGS, f"{TOKEN_EMBEDDING}|{POSITION_EMBEDDING}|{LM_HEAD}"),
        (EXPERTS, r"(^|\.)(experts|shared_experts?)\."),
        (LINEAR_ATTENTION, r"(^|\.)(linear_attn|mamba|mixer|ssm)\."),
        (ATTENTION, r"(^|\.)((\w+_)?(attn|attention)|SelfAttention|EncDecAttention)\."),
        (
            MLP,
            r"(^|\.)(mlp|ffn|feed_forward|block_sparse_moe|DenseReluDense|intermediate|fc[12])\."
            r"|\.layer\.\d+\.output\.",
        ),
    )
)
LABELS = (*(label for label, _ in _CLASSES), OTHER)


def class_of(name: str) -> str:
    """The label of the class that tensor `name` belongs to."""
    return next((label for label, pattern in _CLASSES if pattern.search(name)), OTHER)
