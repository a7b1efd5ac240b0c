"""Which tensors stay uncompressed, and why.

The only place where this is decided. A pattern matches whole components of a name, never a part of
one: `overhead.weight` is no head. Patterns come before shapes, the user comes before both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from tq3.format.header import FLOATS, TensorInfo
from tq3.format.layout import GroupLayout
from tq3.format.recipe import Recipe
from tq3.format.widths import BY_NAME
from tq3.plan.classes import (
    COMPRESSOR,
    EXPERT_ROWS,
    EXPERT_STACK,
    INDEXER,
    LEARNED_TOKENS,
    LM_HEAD,
    POSITION_EMBEDDING,
    TOKEN_EMBEDDING,
)
from tq3.plan.names import whatever_its_numbers
from tq3.plan.precision import dtype_where_kept, why_meant
from tq3.plan.roles import role_of

MIN_DIMENSION = 128
NO_GAIN = "would not become smaller: its rows are too short for groups"

# Each pattern is matched against the end of a name, from the start of a component on. Repeats
# behind a word are bounded: looking for the end again from each start would take hours.
KEEP = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (INDEXER, "indexer: chooses the tokens that attention looks at, which no later step mends"),
        (COMPRESSOR, "compressor: every later token reads what it leaves; read raw by vLLM"),
        (
            r"(^|\.)attn\.wo_a\.weight$|(^|\.)self_attn\.o_a_proj\.weight$",
            "first half of an output projection in groups: read raw, as a batch of products",
        ),
        (
            r"(^|\.)(hc_(attn|ffn|head)_|(attn|ffn)_hc\.|hc_head\.hc_)(fn|base|scale)$",
            "hyper-connection: mixes the streams that all layers write to",
        ),
        (
            r"(^|\.)(layers|mtp)\.\d+\.ffn\.gate\.weight$",
            "router: decides which experts run; read raw by vLLM",
        ),
        (r"(^|\.)gate\.tid2eid$", "router: numbers of experts, looked up by token"),
        (r"(^|\.)engram\.embed(_tokens)?\.weight$", "Engram table: looked up, not multiplied"),
        (
            r"(^|\.)(self_attention|mlp|output_attn)_res_proj\.weight$",
            "weights of earlier layers' outputs: one row, read raw by vLLM",
        ),
        (
            r"(^|\.)routed_expert_up_proj\.weight$",
            "way back from the experts' narrower rows: read raw by vLLM",
        ),
        (
            r"(^|\.)(\w+_)?(ln|norm|layernorm|rmsnorm|groupnorm)(_?\d+|_f|_embedding|_hidden)?"
            r"\.weight$|(^|\.)engram\.[qk]_weight$",
            "norm: multiplies every activation",
        ),
        (POSITION_EMBEDDING, "position embedding: looked up, not multiplied"),
        (
            r"(^|\.)(\w+_)?patch_embed(ding|dings)?(\.\w+){0,8}\.weight$"
            r"|(^|\.)vision_embed_tokens\.weight$",
            "patch embedding: a convolution, the first step from pixels",
        ),
        (
            rf"{LM_HEAD}|(^|\.)(?![qkv]_)(\w+_)?heads?(\.\d+|\.linear)?\.weight$"
            r"|(^|(?<!router)\.)(score|classifier|qa_outputs|seq_relationship)\.weight$"
            r"|(^|\.)(enc_out_)?class_embed(\.\d+)?\.weight$"
            r"|^v_head(\.summary)?\.weight$|(^|\.)regression_layer\.weight$",  # reward models
            "output head: one step before the softmax, its error is the model's error",
        ),
        (TOKEN_EMBEDDING, "token embedding: looked up, not multiplied"),
        (LEARNED_TOKENS, "learned tokens: read as they are, not multiplied"),
        (r"(^|\.)conv1d\.weight$", "read raw by the causal-convolution kernel"),
        (
            r"(^|\.)(A_log|dt_bias)$",
            "decay of the recurrent state: its error grows with every token",
        ),
        (r"(^|\.)(\w+_)?bias$", "bias: added, not multiplied"),
    )
)
_STACK, _ROWS = re.compile(EXPERT_STACK), re.compile(EXPERT_ROWS)
_CONVOLUTION = re.compile(r"(^|[._])conv")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a tensor is compressed, and the reason as the user reads it.

    is_joined: the reason lies in others that hosts join it with
    """

    compress: bool
    reason: str
    is_joined: bool = False


def decide(tensor: TensorInfo, recipe: Recipe, source_dtype: str | None = None) -> Decision:
    """Decide on `tensor`: the user's globs first, then the patterns, then shape and type.

    source_dtype: `precision.main_dtype` of the source, where that is known
    """
    kept_by = _first_match(tensor.name, recipe.keep)
    if kept_by:
        return Decision(False, f"asked for: --keep {kept_by!r}")
    if recipe.only:
        chosen_by = _first_match(tensor.name, recipe.only)
        if not chosen_by:
            return Decision(False, "not chosen by --only")
        why = _why_impossible(tensor) or _why_no_gain(tensor, recipe, source_dtype)
        return Decision(why is None, why or f"asked for: --only {chosen_by!r}")
    asked_for = _asked_for(tensor.name, recipe)
    kept = None if asked_for else why_kept(tensor.name)
    why = kept or next(filter(None, _reasons(tensor, recipe, source_dtype)), None)
    return Decision(why is None, why or asked_for or "a matrix of weights")


def _reasons(tensor: TensorInfo, recipe: Recipe, source_dtype: str | None) -> Iterator[str | None]:
    """Why a tensor stays that no option names, as far as that is so: the first one is said."""
    yield _why_impossible(tensor)
    yield _why_unsuitable(tensor)
    yield why_meant(tensor, source_dtype)
    yield _why_no_gain(tensor, recipe, source_dtype)


def _first_match(name: str, globs: tuple[str, ...]) -> str | None:
    return next((glob for glob in globs if fnmatchcase(name, glob)), None)


def may_compress(tensor: TensorInfo, recipe: Recipe, source_dtype: str | None = None) -> bool:
    """Whether a recipe with widths by role has one for this tensor."""
    if not recipe.widths or not decide(tensor, recipe, source_dtype).compress:
        return False
    return any(recipe.widths.choices(role_of(tensor.name), only=bool(recipe.only)))


def why_exact(name: str, recipe: Recipe) -> str | None:
    """Why a recipe with widths by role leaves what the policy would compress."""
    return f"exact: {role_of(name)} in recipe {recipe.widths.name!r}" if recipe.widths else None


def _asked_for(name: str, recipe: Recipe) -> str | None:
    """Why a tensor that the patterns keep is compressed all the same: its role has a width."""
    if not recipe.widths or not recipe.widths.roles.keys() & BY_NAME:
        return None
    role = role_of(name)
    asked = role in BY_NAME and any(recipe.widths.choices(role))
    return f"asked for: a width for {role}" if asked else None


@whatever_its_numbers
def why_kept(name: str) -> str | None:
    """Why a tensor of this name stays uncompressed unless it is asked for; None where it may."""
    return next((why for pattern, why in KEEP if pattern.search(name)), None)


def _why_impossible(tensor: TensorInfo) -> str | None:
    """Reasons that no option can set aside."""
    if tensor.dtype not in FLOATS:
        return f"{tensor.dtype}: not BF16, F16 or F32"
    if len(tensor.shape) not in (2, 3):
        return f"{len(tensor.shape)}-D: neither a matrix nor a stack of experts"
    if not tensor.n_elements:
        return "empty"
    return None


def _why_unsuitable(tensor: TensorInfo) -> str | None:
    why = _why_no_stack(tensor) if len(tensor.shape) == 3 else _why_no_matrix(tensor.name)
    if why:
        return why
    if max(tensor.shape[-2:]) < MIN_DIMENSION:
        return f"both dimensions are below {MIN_DIMENSION}"
    return None


def _why_no_stack(tensor: TensorInfo) -> str | None:
    if _CONVOLUTION.search(tensor.name):
        return "3-D, but a convolution, no stack of experts"
    if _STACK.search(tensor.name):
        return None
    if tensor.shape[0] == 1:
        return "3-D, but a single table, no stack of experts"
    return "3-D, and tq3 knows no experts of this name: if they are some, see --only"


def _why_no_matrix(name: str) -> str | None:
    if name.endswith(".weight") or _ROWS.search(name):
        return None
    return "its name does not end in .weight"


def _why_no_gain(tensor: TensorInfo, recipe: Recipe, source_dtype: str | None) -> str | None:
    """Rows far shorter than a group are padded: they may take more bytes than before."""
    bits = recipe.bits_for(tensor.name)
    if recipe.widths:
        choices = recipe.widths.choices(role_of(tensor.name), only=bool(recipe.only))
        bits = min((some for some in choices if some), default=bits)
    norm_dtype = "F16" if recipe.norms == "float16" else "F32"
    is_same = recipe.keep_dtype == "source"
    dtype = tensor.dtype if is_same else dtype_where_kept(tensor, source_dtype)
    packed = GroupLayout(tensor.shape, bits, recipe.group_size, norm_dtype)
    return NO_GAIN if _takes_as_much(packed, dtype) else None


@lru_cache(1024)  # a model has few shapes
def _takes_as_much(packed: GroupLayout, dtype: str) -> bool:
    """Whether codes take as many bytes as an uncompressed tensor of this dtype, or more."""
    kept = TensorInfo("", dtype, packed.shape)
    return sum(part.n_bytes for part in packed.tensors("")) >= kept.n_bytes
