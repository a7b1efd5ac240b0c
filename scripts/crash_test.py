"""Kills runs with SIGKILL at many random moments; prints what was hit and what was done again.

python scripts/crash_test.py [KILLS] [SEED]; the checkpoint is larger than the test suite's.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.crashes import Case, crash
from support.factories import Tensor, contents, random_tensor, spoiled, tiny_checkpoint

import tq3

SHARD_BYTES = 4_000_000
SHARDS = ("--max-shard-size", str(SHARD_BYTES))
SlowCase = partial(Case, slow=0.001, block_bytes=2**18)


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    cases = [
        SlowCase("one shard", plain),
        SlowCase("many shards", plain, SHARDS),
        Case("numpy", plain, (*SHARDS, "--backend", "numpy"), slow=0.0, block_bytes=2**18),
        SlowCase("findings", with_findings, SHARDS),
        SlowCase("overwritten", plain, SHARDS, older=older),
        SlowCase("restored", compressed, ("--max-shard-size", "20MB"), command="restore"),
    ]
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print(crash(cases, Path(folder), kills=kills, seed=seed))
    print(f"{time.monotonic() - begun:.0f} s")


def tensors() -> dict[str, Tensor]:
    """40 MB: compressed, padded, of experts, and kept."""
    found: dict[str, Tensor] = {}
    for i in range(4):
        found |= {
            f"layers.{i}.norm.weight": random_tensor(100_000, seed=4 * i),
            f"layers.{i}.up.weight": random_tensor(2048, 1024, seed=4 * i + 1),
            f"layers.{i}.padded.weight": random_tensor(800, 1000, dtype="F32", seed=4 * i + 2),
            f"layers.{i}.mlp.experts.gate_up_proj": random_tensor(6, 256, 768, seed=4 * i + 3),
        }
    return found


def plain(path: Path) -> None:
    """A checkpoint and a file beside it."""
    tiny_checkpoint(path, tensors(), shards=2)
    (path / "tokenizer.json").write_text("{}")


def with_findings(path: Path) -> None:
    """Values that don't fit float16, in two shards of several."""
    names = [f"layers.{i}.norm.weight" for i in (0, 2)]
    found = tensors()
    found |= {name: spoiled(found[name], (77_777,), 1e30) for name in names}
    tiny_checkpoint(path, found, shards=2)


def compressed(path: Path) -> None:
    """What is restored."""
    plain(path.with_name("first"))
    tq3.compress(path.with_name("first"), path)


def older(out: Path) -> None:
    """A checkpoint of the same names, sizes and headers, and of other values."""
    tq3.compress(out.with_name("in"), out, max_shard_size=SHARD_BYTES)
    for path in [out / name for name in contents(out) if name.endswith(".safetensors")]:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


if __name__ == "__main__":
    main()
