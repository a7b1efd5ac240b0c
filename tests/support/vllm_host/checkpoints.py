"""Tiny checkpoints, compressed, and the dense ones that they decode to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import tq3
from support.models.tiny_models import BY_NAME, SIZES, Architecture, write_checkpoint


class Pair(NamedTuple):
    """A TQ3 folder, and the folder of the weights that its codes stand for."""

    packed: Path
    dense: Path


MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 48, "mamba_d_state": 16}
GRANITE = {"num_local_experts": 4, "num_experts_per_tok": 4, "shared_intermediate_size": 160}
# Architectures that only vLLM is asked for: class of the model, of its configuration, sizes.
ONLY_HERE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),  # has biases
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", GRANITE),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        GRANITE | MAMBA | {"layer_types": ["mamba", "attention"]},
    ),
    "falcon_h1": ("FalconH1ForCausalLM", "FalconH1Config", MAMBA | {"mamba_d_ssm": 384}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4}),
}


def tiny(name: str, changes: dict[str, Any] | None = None) -> Architecture:
    """An architecture of the suite or of vLLM's tests alone, with other sizes."""
    if name in ONLY_HERE:
        model, config, sizes = ONLY_HERE[name]
        made = getattr(transformers, config)(**SIZES | sizes | (changes or {}))
        return Architecture(name, getattr(transformers, model), made, frozenset())
    architecture = BY_NAME[name]
    config = architecture.config.to_dict()
    text = config.get("text_config", config)
    text |= changes or {}
    if "vision_config" in config:
        config["vision_config"]["out_hidden_size"] = text["hidden_size"]
    return replace(architecture, config=type(architecture.config)(**config), has_mtp=False)


def make(
    architecture: Architecture,
    folder: Path,
    dtype: Any,
    *,
    half_norms: bool = False,
    **options: Any,
) -> Pair:
    """Write, compress and restore one; a second call with the same folder finds it there.

    half_norms: round them to float16, still stored as float32
    """
    pair = Pair(folder / "packed", folder / "dense")
    if not pair.dense.exists():
        write_checkpoint(architecture, folder / "source")
        tq3.compress(folder / "source", pair.packed, **options)
        if half_norms:
            _change_norms(pair.packed, lambda norms: norms.half().float())
        tq3.restore(pair.packed, pair.dense, dtype=dtype)
    return pair


def with_half_norms(pair: Pair) -> Path:
    """The packed folder with float16 norms. The dense weights must be made of such values."""
    folder = pair.packed.with_name("half_norms")
    shutil.copytree(pair.packed, folder)
    _change_norms(folder, torch.Tensor.half)
    return folder


def _change_norms(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        norms = {name: change(t) for name, t in tensors.items() if name.endswith(".tq_norms")}
        save_file(tensors | norms, file, metadata={"format": "pt"})


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the weight files of a checkpoint."""
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def without(pair: Pair, matrix: str) -> Path:
    """The packed folder, less one matrix."""
    folder = pair.packed.with_name(f"without {matrix}")
    folder.mkdir()
    for file in pair.packed.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).hardlink_to(file)
            continue
        tensors = load_file(file)
        kept = {name: t for name, t in tensors.items() if not name.startswith(matrix)}
        save_file(kept, folder / file.name, metadata={"format": "pt"})
    return folder


def as_published(pair: Pair) -> Pair:
    """Folders of other writers say nothing of quantisation in config.json."""
    published = pair.packed.with_name("published")
    if not published.exists():
        published.mkdir()
        for file in pair.packed.iterdir():
            (published / file.name).hardlink_to(file)
        config = json.loads((pair.packed / "config.json").read_text())
        del config["quantization_config"]
        (published / "config.json").unlink()
        (published / "config.json").write_text(json.dumps(config))
    return pair._replace(packed=published)


def write_tokenizer(folder: Path) -> None:
    """A word for each id of SIZES' vocabulary: some runners want a tokenizer."""
    ids = {"<pad>": 0, "<unk>": 1} | {f"word{i}": i for i in range(2, SIZES["vocab_size"])}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
