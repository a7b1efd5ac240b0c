"""A random model of a 27B's widths in Transformers: generate, a graph of one step, prompts."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu.machine import Machine
from gpu.plan import Model, Plan
from gpu.rows import Cases, Row, Skipped
from gpu.timing import DTYPE, GROUP, Ceilings, ceilings
from torch import nn

from tq3.format.layout import GroupLayout
from tq3.runtime.modules import PackedLinear, PackedWeight, note_siblings

CACHED_TOKENS = 256
# Steps by a graph and by the host, whose logits must be the same bits.
COMPARED_STEPS = 3


def model(gpu: Machine, plan: Plan) -> Cases:
    """For each width: what it needs, and tokens a second; the same weights in bfloat16 beside."""
    most = ceilings(gpu, plan.ring_bytes)
    for bits in (3, None, 4):
        made: list[Any] = []
        tasks: dict[str, Callable[[], Row]] = {
            "loading": partial(_load, gpu, plan.model, bits, made),
            "eager generate": partial(_generate, gpu, plan.model, made),
            "a graph of one step": partial(_step, gpu, most, made),
        }
        for tokens in plan.model.prompts:
            tasks[f"a prompt of {tokens} tokens"] = partial(_prefill, gpu, tokens, made)
        for name, task in tasks.items():
            yield f"{f'{bits} bits' if bits else 'bf16'}, {name}", torch.no_grad()(task)


def _load(gpu: Machine, sizes: Model, bits: int | None, made: list[Any]) -> Row:
    gc.collect()  # an earlier model
    before, _ = gpu.memory()
    start = time.perf_counter()
    made.append(random_model(sizes, bits, gpu.device))
    gpu.wait()
    seconds = time.perf_counter() - start
    stays, peak = gpu.memory()
    return {
        "loading s": seconds,
        "GB": bytes_a_token(made[0]) / 1e9,
        "allocated GB": (stays - before) / 1e9,
        "peak GB": (peak - before) / 1e9,
    }


def random_model(sizes: Model, bits: int | None, device: torch.device) -> Any:
    """A Qwen3 whose layers are packed; with `bits` None all of it is bfloat16. The head is."""
    try:
        from transformers import AutoModelForCausalLM, Qwen3Config  # noqa: PLC0415  may be missing
    except ImportError as error:
        raise Skipped(f"Transformers can't be imported: {error}") from None
    config = Qwen3Config(
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa")
    for path, module in list(found.model.layers.named_modules()):
        if bits and type(module) is nn.Linear:
            shape = module.out_features, module.in_features
            found.model.layers.set_submodule(path, _packed(shape, bits, device))
    for path, parameter in list(found.named_parameters()):
        if parameter.is_meta:
            owner, _, name = path.rpartition(".")
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            value.normal_(0, 0.02) if parameter.dim() > 1 else value.fill_(1)
            setattr(found.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))
    # Frequencies are computed, not loaded.
    with device:
        found.model.rotary_emb = type(found.model.rotary_emb)(config)
    note_siblings(found)
    return found.eval()


def _packed(shape: tuple[int, int], bits: int, device: torch.device) -> PackedLinear:
    """Any codes, and norms of usual weights."""
    weight = PackedWeight(GroupLayout(shape, bits, GROUP), dtype=DTYPE, device=device)
    weight.tq_packed.data.random_(0, 256)
    weight.tq_norms.data.fill_(0.02 * GROUP**0.5)
    weight.arrange()
    return PackedLinear(weight)


def bytes_a_token(found: Any) -> int:
    """What a step reads of weights: all but the table of embeddings."""
    table = found.get_input_embeddings().weight
    whole: int = sum(each.nbytes for each in found.parameters())
    return whole - int(table.nbytes)


def _generate(gpu: Machine, sizes: Model, made: list[Any]) -> Row:
    found, count = _made(made), sizes.new_tokens
    prompt = torch.randint(0, sizes.vocabulary, (1, 4), device=gpu.device)

    def call(new: int) -> None:
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        found.generate(prompt, **lengths, do_sample=False, pad_token_id=0)

    call(2)
    return {"tokens/s": count / _seconds(gpu, partial(call, count))}


def _prefill(gpu: Machine, tokens: int, made: list[Any]) -> Row:
    found = _made(made)
    prompt = torch.randint(0, found.config.vocab_size, (1, tokens), device=gpu.device)
    call = partial(found, prompt, use_cache=False, logits_to_keep=1)
    call()
    return {"tokens/s": tokens / _seconds(gpu, call)}


def _step(gpu: Machine, most: Ceilings, made: list[Any]) -> Row:
    """The replay is bit-equal to the same steps by the host, or this fails."""
    from transformers import StaticCache  # noqa: PLC0415  as in `random_model`

    found = _made(made)
    cache = StaticCache(config=found.config, max_cache_len=CACHED_TOKENS)
    places = torch.arange(CACHED_TOKENS, device=gpu.device)
    token = torch.zeros(1, 1, dtype=torch.long, device=gpu.device)
    position = torch.zeros(1, dtype=torch.long, device=gpu.device)

    def step() -> torch.Tensor:
        # The model's own way to a mask may ask the device for values.
        mask = {"full_attention": (places <= position)[None, None, None]}
        options = {"past_key_values": cache, "use_cache": True, "position_ids": position[None]}
        logits: torch.Tensor = found(token, attention_mask=mask, **options).logits[:, -1]
        token.copy_(logits.argmax(-1, keepdim=True))
        position.add_(1)
        return logits

    def from_the_start(call: Callable[[], torch.Tensor]) -> torch.Tensor:
        cache.reset()
        token.fill_(1)
        position.zero_()
        return torch.stack([call().clone() for _ in range(COMPARED_STEPS)])

    step()
    captured = gpu.capture(step)

    def replay() -> torch.Tensor:
        captured.replay()
        result: torch.Tensor = captured.result
        return result

    by_graph, by_host = from_the_start(replay), from_the_start(step)
    if not torch.equal(by_graph, by_host):
        differ = int((by_graph != by_host).sum())
        raise AssertionError(
            f"a replay gives other logits than the host: {differ} of {by_host.numel()}"
        )
    cache.reset()
    position.zero_()
    seconds = gpu.seconds(captured.replay)
    rate = bytes_a_token(found) / seconds
    return {
        "tokens/s": 1 / seconds,
        "ms a token": seconds * 1e3,
        "% of read": 100 * rate / most.read,
        "replay": "bit-equal",
    }


def _made(made: list[Any]) -> Any:
    if not made:
        raise Skipped("there is no model: see above")
    return made[0]


def _seconds(gpu: Machine, task: Callable[[], Any]) -> float:
    gpu.wait()
    start = time.perf_counter()
    task()
    gpu.wait()
    return time.perf_counter() - start
