"""Times planning a checkpoint of many tensors: what each part of a run does before it reads.

    python scripts/bench_planning.py --tensors 100000 --shards 500

The checkpoint is a mixture of experts in sparse files: headers are real, weights take no disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tq3.equalization.choice import choose_scalings
from tq3.format.parts import Part
from tq3.format.request import make_recipe
from tq3.pipelines.compress import Compression
from tq3.plan.shares import share
from tq3.storage.local import LocalFiles
from tq3.storage.selection import BY_POLICY

HIDDEN, INNER = 2048, 768
LAYERS = 60
ATTENTION = {
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj.weight": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate.weight": (512, HIDDEN),
}
EXPERT = {
    "gate_proj.weight": (INNER, HIDDEN),
    "up_proj.weight": (INNER, HIDDEN),
    "down_proj.weight": (HIDDEN, INNER),
}
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_attention_heads": 16,
    "head_dim": 128,
    "num_hidden_layers": LAYERS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--recipe", nargs="+", default=["native", "best"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.plan, options.recipe[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = make_checkpoint(Path(folder) / "source", options.tensors, options.shards)
        for recipe in options.recipe:
            for _ in range(options.rounds):
                report(recipe, in_a_process(source, recipe))


def report(recipe: str, found: dict[str, float]) -> None:
    """One line."""
    steps = ", ".join(
        f"{name} {found[name]:.1f} s" for name in ("headers", "identity", "shares", "scalings")
    )
    print(
        f"{recipe}: {found['tensors']:.0f} tensors, {found['gigabytes']:.0f} GB, "
        f"{found['shards']:.0f} shards out: {found['cpu']:.2f} s of processor time ({steps}), "
        f"{found['megabytes']:.0f} MB",
        flush=True,
    )


def in_a_process(source: Path, recipe: str) -> dict[str, float]:
    """What `plan` finds in a process of its own, whose memory nobody else used."""
    command = [sys.executable, __file__, "--plan", str(source), "--recipe", recipe]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def plan(source: Path, recipe: str) -> dict[str, float]:
    """Plan as a part does; processor seconds by step, and the most memory."""
    began = time.process_time()
    with LocalFiles(source) as files:
        job = Compression(files, make_recipe(recipe=recipe), False, BY_POLICY)
        planned = time.process_time()
        job.identity()
        identified = time.process_time()
        share(job.plan, Part(3, 16))
        copied = job.sidecars().copied
        shared = time.process_time()
        choose_scalings(job.checkpoint, job.plan, copied, None)
        ended = time.process_time()
    return {
        "tensors": len(job.plan.tasks),
        "gigabytes": job.plan.bytes_in / 1e9,
        "shards": len(job.plan.shards),
        "headers": planned - began,
        "identity": identified - planned,
        "shares": shared - identified,
        "scalings": ended - shared,
        "cpu": ended - began,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def make_checkpoint(folder: Path, n_tensors: int, n_shards: int) -> Path:
    """About so many BF16 tensors in so many sparse files."""
    folder.mkdir()
    experts = max(1, (n_tensors // LAYERS - len(ATTENTION)) // len(EXPERT))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151_936, HIDDEN)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        shapes |= {stem + name: shape for name, shape in ATTENTION.items()}
        for expert in range(experts):
            inner = f"{stem}mlp.experts.{expert}."
            shapes |= {inner + name: shape for name, shape in EXPERT.items()}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (151_936, HIDDEN)}
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for number in range(n_shards):
        file = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        run = names[len(names) * number // n_shards : len(names) * (number + 1) // n_shards]
        write_sparse(folder / file, {name: shapes[name] for name in run})
        weight_map |= dict.fromkeys(run, file)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of these tensors, all zeros."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, n = end, 1
        for size in shape:
            n *= size
        end = start + 2 * n
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    main()
