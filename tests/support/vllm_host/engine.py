"""Runs of vLLM, and when two of them say the same."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import LLM, SamplingParams
from vllm.distributed import destroy_distributed_environment, destroy_model_parallel
from vllm.model_executor.models import ModelRegistry

# Random models are undecided: roundings decide between tokens that are closer than this in log
# probability. float32 wherever vLLM can; its Gated DeltaNet on CPUs knows only bfloat16.
MARGIN = {"float32": 0.02, "bfloat16": 0.2}
PROMPTS = [[(7 * i + 31 * j) % 500 for j in range(5 + i % 11)] for i in range(32)]
N_TOKENS = 6


class Token(NamedTuple):
    """A greedy token, its log probability, and how far the second one is."""

    id: int
    logprob: float
    margin: float


@contextmanager
def engine(folder: Path, dtype: str, **options: Any) -> Iterator[LLM]:
    """vLLM in this process, eager and on one rank if nothing else is asked for."""
    defaults: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": 64,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 2**26,
        "skip_tokenizer_init": True,
        "limit_mm_per_prompt": {"image": 0, "video": 0},
    }
    if options.get("tensor_parallel_size", 1) == 1:
        defaults["distributed_executor_backend"] = "uni"
    _import_model(folder)
    gc.freeze()  # vLLM collects garbage eight times, each time among a million objects
    try:
        llm = LLM(model=str(folder), dtype=dtype, **defaults | options)
    except Exception:
        # Its process groups would be those of the next model, which may need others.
        destroy_model_parallel()
        destroy_distributed_environment()
        raise
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def _import_model(folder: Path) -> None:
    """Here: vLLM itself starts a process that looks at a class it has not seen before."""
    for name in json.loads((folder / "config.json").read_text()).get("architectures", ()):
        known = ModelRegistry.models.get(name)
        if hasattr(known, "module_name"):
            ModelRegistry.register_model(name, known.load_model_cls())


def greedy(llm: LLM, n_prompts: int = len(PROMPTS), **options: Any) -> list[list[Token]]:
    """What follows each of the first PROMPTS. options: of `LLM.generate`"""
    sampling = SamplingParams(
        temperature=0, max_tokens=N_TOKENS, logprobs=2, detokenize=False, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS[:n_prompts]]
    return [
        [_token(id_, top) for id_, top in zip(out.token_ids, out.logprobs, strict=True)]
        for result in llm.generate(prompts, sampling, use_tqdm=False, **options)
        for out in result.outputs
    ]


@cache
def answers(folder: Path, dtype: str) -> list[list[Token]]:
    """The same by an engine of its own, started once for each checkpoint: for dense ones."""
    with engine(folder, dtype) as llm:
        return greedy(llm)


def _token(id_: int, top: dict[int, Any]) -> Token:
    first, second = sorted((entry.logprob for entry in top.values()), reverse=True)[:2]
    return Token(id_, top[id_].logprob, first - second)


def assert_same(
    found: list[list[Token]], dense: list[list[Token]], dtype: str, may_differ: int = 0
) -> None:
    """Each text is the dense model's, up to its first token that roundings could change.

    may_differ: texts that need not be, where roundings also decide between experts
    """
    agreed = agreement(found, dense, dtype)
    assert agreed.count(None) <= may_differ
    assert sum(filter(None, agreed)) >= {"float32": 100, "bfloat16": 20}[dtype]


def agreement(found: list[list[Token]], dense: list[list[Token]], dtype: str) -> list[int | None]:
    """How many tokens of each text are the dense model's; None for a text that is wrong."""
    return [_agreed(text, wanted, MARGIN[dtype]) for text, wanted in zip(found, dense, strict=True)]


def _agreed(text: list[Token], wanted: list[Token], margin: float) -> int | None:
    """How many tokens there are before the first close call; None where one of them is wrong."""
    clear = list(takewhile(lambda token: token.margin > margin, wanted))
    pairs = zip(text[: len(clear)], clear, strict=True)
    right = all(t.id == w.id and abs(t.logprob - w.logprob) < margin for t, w in pairs)
    return len(clear) if right else None


def bytes_of_layers(llm: LLM) -> list[dict[str, tuple[int, int]]]:
    """For each rank: packed layer -> bytes of all tensors that it has, bytes of codes and norms."""
    return llm.collective_rpc(_bytes_of_layers)


def parameter(llm: LLM, name: str) -> torch.Tensor:
    """A parameter of the model, as it is served."""
    return llm.collective_rpc(_parameter, args=(name,))[0]


def drafted(llm: LLM) -> tuple[set[str], list[torch.Tensor]]:
    """The MTP layer's parameters, and what its matrices make of some numbers, without attention."""
    return llm.collective_rpc(_drafted)[0]


def _parameter(worker: Any, name: str) -> torch.Tensor:
    return worker.get_model().get_parameter(name).data


def _drafted(worker: Any) -> tuple[set[str], list[torch.Tensor]]:
    predictor = worker.model_runner.drafter.model.model
    fc, mlp = predictor.fc, predictor.layers[0].mlp
    x = torch.randn(3, fc.input_size, generator=torch.Generator().manual_seed(0))
    x = x.to(torch.bfloat16)
    with torch.no_grad():
        made = [fc(x), mlp(x[:, : fc.output_size].contiguous())]
    return {name for name, _ in predictor.named_parameters()}, made


def _bytes_of_layers(worker: Any) -> dict[str, tuple[int, int]]:
    layers = {}
    for name, layer in worker.get_model().named_modules():
        named = layer.named_parameters(recurse=False)
        parts = [p for n, p in named if n.endswith(("_packed", "_norms"))]
        if parts:
            held = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            held += [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
            layers[name] = (sum(t.nbytes for t in held), sum(t.nbytes for t in parts))
    return layers
