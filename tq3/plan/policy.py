"""Which tensors stay uncompressed, and why.

The only place where this is decided. A pattern matches whole components of a name, never a part of
one: `overhead.weight` is no head. Patterns come before shapes, the user comes before both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tq3.format.header import FLOATS, TensorInfo
from tq3.format.recipe import Recipe

MIN_DIMENSION = 128

# Each pattern is matched against the end of a name, from the start of a component on. Repeats
# behind a word are bounded: looking for the end again from each start would take hours.
KEEP = tuple(
    (re.compile(rf"(^|\.)({pattern})$"), why)
    for pattern, why in (
        (
            r"(\w+_)?(ln|norm|layernorm|rmsnorm|groupnorm)(_?\d+|_f|_embedding|_hidden)?\.weight",
            "norm: multiplies every activation",
        ),
        (
            r"(\w+_)?((pos|position|positional)_embed(ding|dings)?|embed_positions|wpe)\.weight",
            "position embedding: looked up, not multiplied",
        ),
        (
            r"(\w+_)?patch_embed(ding|dings)?(\.\w+){0,8}\.weight",
            "patch embedding: a convolution, the first step from pixels",
        ),
        (
            r"(\w+_)?(embed(ding|dings)?|embed_in|embed_tokens(_\w{1,50})?)\.weight|wte\.weight",
            "token embedding: looked up, not multiplied",
        ),
        (
            r"(\w+_)?heads?(\.\d+|\.linear)?\.weight|(lm_head|predictions)\.decoder\.weight"
            r"|(embed_out|score|classifier|qa_outputs|seq_relationship)\.weight",
            "output head: one step before the softmax, its error is the model's error",
        ),
        (r"conv1d\.weight", "read raw by the causal-convolution kernel"),
        (r"A_log|dt_bias", "decay of the recurrent state: its error grows with every token"),
        (r"(\w+_)?bias", "bias: added, not multiplied"),
    )
) + (
    # At the top of a model only do these names mean T5's embedding and the head of Meta's files.
    (re.compile(r"^(model\.)?shared\.weight$"), "token embedding: looked up, not multiplied"),
    (re.compile(r"^(model\.)?output\.weight$"), "output head: one step before the softmax"),
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a tensor is compressed, and the reason as the user reads it."""

    compress: bool
    reason: str


def decide(tensor: TensorInfo, recipe: Recipe) -> Decision:
    """What happens to `tensor`: the user's globs first, then the patterns, then the shape."""
    impossible = _why_impossible(tensor)
    kept_by = _first_match(tensor.name, recipe.keep)
    if kept_by:
        return Decision(False, f"asked for: --keep {kept_by!r}")
    if recipe.only:
        chosen_by = _first_match(tensor.name, recipe.only)
        if not chosen_by:
            return Decision(False, "not chosen by --only")
        return Decision(impossible is None, impossible or f"asked for: --only {chosen_by!r}")
    why = _why_kept(tensor.name) or impossible or _why_unsuitable(tensor)
    return Decision(why is None, why or "a matrix of weights")


def _first_match(name: str, globs: tuple[str, ...]) -> str | None:
    return next((glob for glob in globs if fnmatchcase(name, glob)), None)


def _why_kept(name: str) -> str | None:
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
    is_experts = len(tensor.shape) == 3 and ("experts" in tensor.name.split("."))
    if not is_experts and len(tensor.shape) != 2:
        return "3-D, but not below a component named experts"
    if not is_experts and not tensor.name.endswith(".weight"):
        return "its name does not end in .weight"
    if max(tensor.shape[-2:]) < MIN_DIMENSION:
        return f"both dimensions are below {MIN_DIMENSION}"
    return None
