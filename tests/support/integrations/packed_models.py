"""Packed models for tests, and how they are compared with the restored ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import tq3.integrations.transformers
from support.models.tiny_models import SIZES, Architecture, write_checkpoint
from support.models.tq3_folder import Tensors, read_tensors

# Of logits, relative: integer kernels round 3-bit levels, 0.1 % of each product. The generic path,
# which multiplies the levels themselves, stays below 1e-5.
BOUND = 1e-2
# Where all levels are of 4 bits: 0.33 % of each product.
BOUND_4_BITS = 2e-2
# Here routers turn rounding into other experts; the dense model in bfloat16 is off by 0.11.
BOUNDS = {"qwen3_5_moe": 1e-1}
# All of its matrices are held decoded, with biases beside them.
GPT2_CONFIG = GPT2Config(n_embd=192, n_layer=2, n_head=4, vocab_size=512)
GPT2 = Architecture("gpt2", GPT2LMHeadModel, GPT2_CONFIG, frozenset())
FIRST_ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}
PROMPT = torch.arange(40).reshape(2, 20) * 7 % SIZES["vocab_size"]


class Case(NamedTuple):
    """One architecture's folders: as Transformers saved it, compressed, restored as float32."""

    architecture: Architecture
    source: Path
    compressed: Path
    restored: Path


def make_case(architecture: Architecture, folder: Path, **options: Any) -> Case:
    """Write, compress with `options`, restore."""
    made = Case(architecture, folder / "source", folder / "tq3", folder / "restored")
    write_checkpoint(architecture, made.source)
    tq3.compress(made.source, made.compressed, **options)
    tq3.restore(made.compressed, made.restored, dtype="float32")
    return made


def changed(folder: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a checkpoint whose tensors went through `change`, in one file."""
    tensors = read_tensors(folder)
    change(tensors)
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def load(
    architecture: Architecture, folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> PreTrainedModel:
    """The model in `folder`; no key may be missing, unexpected or of another shape."""
    model, info = architecture.model_class.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **options
    )
    assert {key: found for key, found in info.items() if found} == {}
    return model


def offloaded(case: Case, folder: Path) -> PreTrainedModel:
    """The first layer on the disk, the rest in memory: for a model with two layers as Llama's."""
    model = load(
        case.architecture, case.compressed, device_map=FIRST_ON_DISK, offload_folder=folder
    )
    assert model.model.layers[0].mlp.up_proj.weight.tq_packed.is_meta
    return model


def served(tensors: dict[str, Any]) -> dict[str, Any]:
    """Those of a checkpoint that Transformers has a place for."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor = PROMPT) -> torch.Tensor:
    return model(tokens.to(model.device)).logits


def assert_close(found: torch.Tensor, wanted: torch.Tensor, bound: float = BOUND) -> None:
    assert found.isfinite().all()
    assert (found - wanted).norm() <= bound * wanted.norm()


def assert_same_logits(architecture: Architecture, packed: Any, restored: Any) -> None:
    """Within what the kernels' rounding may do to this architecture."""
    assert_close(logits(packed), logits(restored), BOUNDS.get(architecture.name, BOUND))


def generated(model: PreTrainedModel, n_tokens: int = 8, **options: Any) -> torch.Tensor:
    """The prompt and its greedy continuation, of just so many tokens."""
    prompt = PROMPT.to(model.device)
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=n_tokens,
        max_new_tokens=n_tokens,
        pad_token_id=0,
        **options,
    )


def assert_greedy(tokens: torch.Tensor, judge: PreTrainedModel, bound: float = BOUND) -> None:
    """Each new token is the one that `judge` prefers, or one as good within the bound.

    Two models that differ by rounding may part where two tokens tie.
    """
    n_prompt = PROMPT.shape[1]
    scores = logits(judge, tokens)[:, n_prompt - 1 : -1]
    chosen = scores.gather(-1, tokens[:, n_prompt:, None])[..., 0]
    assert (chosen >= scores.amax(-1) - bound * scores.norm(dim=-1)).all()


def packed_bytes(model: PreTrainedModel) -> int:
    """Of codes and norms."""
    return sum(tensor.nbytes for name, tensor in model.named_parameters() if ".tq_" in f".{name}")
