"""Where in a model a tensor lies: attention, MLP, experts and so on, by which tables count.

Patterns match whole components of a name; `roles.py` says what a tensor does at its place.
"""

from __future__ import annotations

import re

from tq3.plan.names import whatever_its_numbers

# Tables of one kind may have numbers: `embed_tokens.0`, `token_type_embeddings_2`. Names that some
# model gives to a matrix, too, are anchored to where they are a table.
TOKEN_EMBEDDING = (
    r"(^|(?<!\bengram)\.)((\w{1,50}_)?(embed|emb|embedding|embeddings|embed_in)|embed_(char|global|timestep)"
    r"|(\w{1,50}_)?embed_([a-z]{1,20}_)?tokens(_extend|_per_layer)?|input_embeds_layers?"
    r"|(column|row|queries)_embedder|HashBucketCodepointEmbedder)([._]\d{1,4})?\.weight$"
    r"|(^|\.)(wte|shared|codebook|visual_embeddings_table)\.weight$"
    r"|(^|\.)wte\.(new_)?embedding$"  # Molmo
    r"|^(transformer\.)?w\.weight$"  # CTRL
    r"|(^|\.)audio(_tower)?\.encoder\.weight$"  # Inkling
)
POSITION_EMBEDDING = (
    r"(^|\.)((\w{1,50}_)?(pos|position|positional)_(emb|embed|embedding|embeddings)"
    r"(_table|_vlm)?|position_embeds_layer|embed_positions(\.pe_k)?|wpe"
    r"|\w{1,50}_positional_embedding\.embedding"
    r"|relative_attention_bias(_layer\.bias_values)?|relative_position_bias_table)(\.weight)?$"
)
# Rows that a model reads as they are: queries of a decoder, prompts of a mask.
LEARNED_TOKENS = (
    r"(^|\.)((audio_bos_eos|hq|iou|mask|obj_score|presence)_tokens?|queries_features|query_feat"
    r"|query_\d{1,5}_resolution|detr_decoder\.reference_points)\.weight$"
    r"|^(reference_points|query)\.weight$"  # elsewhere this is a part of attention
)
# A head over a vocabulary; at the top `output` is the one of Meta's and Mistral's files, `head` of
# DeepSeek V4's. DeepSeek V3 and GLM have one more in a layer that predicts another token.
LM_HEAD = (
    r"(^|\.)(lm_head(\.linear|\.decoder|\.out_proj)?|(predictions|mlm_score|head)\.decoder|embed_out"
    r"|unembed|log_softmax\.mlp\.layer0|lm_loss|pred_layer\.proj|vocab_projector|shared_head\.head)"
    r"\.weight$|^(model\.)?(output|cls|encoder\.out)\.weight$|^(decoder|proj_out|head)\.weight$"
    # Of models that bring their own code: InternVL, ChatGLM, OLMo and LLaDA, Moshi.
    r"|(^|\.)(language_model\.output|transformer\.(output_layer|ff_out))\.weight$"
    r"|^(text_linear|linears\.\d{1,4})\.weight$"
    r"|(^|(^|\.)decoder\.)output_projection\.weight$"
)
# What chooses the tokens that attention looks at, and what joins several tokens in one of a cache:
# matrices that are named as those of attention, and do something else.
INDEXER = r"(^|\.)(indexer\.|index_[qk]_proj\.)"
COMPRESSOR = r"(^|\.)compressor\."
# Experts of a layer that each token is sent to, and those that all tokens pass.
_PARALLEL = r"(block_sparse_moe|mlp)\.(input|output)_linear\.weight$"
ROUTED_EXPERTS = (
    r"(^|(?<!attention)\.)experts\."  # the experts of an attention (JetMoe) are attention
    rf"|(^|\.){_PARALLEL}|(^|\.)moe\.(gate|up|gate_up|down)_proj\.weight$"
)
SHARED_EXPERTS = r"(^|\.)(shared_experts?|share_expert|shared_mlp)\."
# Where a 3-D tensor is a stack of matrices, one for each expert.
EXPERT_STACK = rf"(^|\.)((\w{{1,50}}_)?(experts|moe)\.|{_PARALLEL})"
# The experts of a layer below each other in one matrix (DBRX).
EXPERT_ROWS = r"(^|\.)experts\.mlp\.(w1|v1|w2)$"

VISION, MTP, EMBEDDINGS, EXPERTS = "vision", "MTP", "embeddings", "experts"
LINEAR_ATTENTION, ATTENTION, MLP, OTHER = "linear attention", "attention", "MLP", "other"

# First match wins: a vision tower has attention of its own, an MTP layer has experts of its own.
_CLASSES = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        (
            VISION,
            r"(^|\.)(visual|vision|vision_tower|vision_model|vision_encoder"
            r"|multi_modal_projector|mm_projector|vision_language_adapter|aligner"
            r"|patch_merger|patch_merge_mlp)\.",
        ),
        (MTP, r"(^|\.)(mtp(_\w+)?|eh_proj)\."),
        (EMBEDDINGS, f"{TOKEN_EMBEDDING}|{POSITION_EMBEDDING}|{LM_HEAD}"),
        (EXPERTS, f"{ROUTED_EXPERTS}|{SHARED_EXPERTS}"),
        (LINEAR_ATTENTION, r"(^|\.)(linear_attn|mamba|mixer|ssm)\."),
        (ATTENTION, r"(^|\.)((\w+_)?(attn|attention)|SelfAttention|EncDecAttention)\."),
        (
            MLP,
            r"(^|\.)(mlp|ffn|feed_forward|(block_)?sparse_moe|moe|moe_gate|router|DenseReluDense"
            r"|intermediate|fc[12])\."
            r"|\.layer\.\d+\.output\.|(^|\.)layers\.\d+\.gate\.",
        ),
    )
)
LABELS = (*(label for label, _ in _CLASSES), OTHER)


@whatever_its_numbers
def class_of(name: str) -> str:
    """The label of the class that tensor `name` belongs to."""
    return next((label for label, pattern in _CLASSES if pattern.search(name)), OTHER)
