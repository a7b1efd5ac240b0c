"""Makes checkpoints, tensors and headers for tests, and reads results back.

Nothing here uses tq3: files are written byte by byte and read with the safetensors library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import ArrayLike, NDArray

_WORDS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


class Tensor(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> NDArray[Any]:
        """(rows, columns) raw elements of a BF16, F16 or F32 tensor, leading dimensions as rows."""
        return self._elements().reshape(-1, self.shape[-1])

    @property
    def values(self) -> NDArray[np.float32]:
        """The numbers of a BF16, F16 or F32 tensor, in its shape."""
        words = self._elements()
        if self.dtype == "BF16":
            return (words.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        kind = np.float16 if self.dtype == "F16" else np.float32
        return words.view(kind).astype(np.float32).reshape(self.shape)

    def _elements(self) -> NDArray[Any]:
        return np.frombuffer(self.data, _WORDS[self.dtype])


Tensors = Mapping[str, Tensor]


def tensor(values: ArrayLike, dtype: str = "BF16") -> Tensor:
    """These numbers as BF16 (cut, not rounded), F16 or F32."""
    floats = np.ascontiguousarray(values, np.float32)
    shape = np.shape(values)
    if dtype == "BF16":
        return Tensor(dtype, shape, (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    kind = np.float16 if dtype == "F16" else np.float32
    return Tensor(dtype, shape, floats.astype(kind).tobytes())


def random_tensor(*shape: int, dtype: str = "BF16", seed: int = 0) -> Tensor:
    """Gaussian weights of the usual size."""
    return tensor(np.random.default_rng(seed).normal(0, 0.02, shape), dtype)


def spoiled(sound: Tensor, at: tuple[int, ...], value: float) -> Tensor:
    """The same tensor with one other value."""
    values = sound.values.copy()
    values[at] = value
    return tensor(values, sound.dtype)


def raw_tensor(dtype: str, shape: tuple[int, ...], bits: int, seed: int = 0) -> Tensor:
    """Any bytes, for dtypes without arithmetic."""
    n_bytes = prod(shape) * bits // 8
    return Tensor(dtype, shape, np.random.default_rng(seed).bytes(n_bytes))


def llama_tensors(layers: int = 2, width: int = 128, dtype: str = "BF16") -> dict[str, Tensor]:
    """The tensors of a tiny Llama: 3 compressed and 1 kept in each layer, and 3 more kept."""
    tensors = {"model.embed_tokens.weight": random_tensor(32, width, dtype=dtype, seed=1)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        tensors |= {
            stem + "input_layernorm.weight": random_tensor(width, dtype=dtype, seed=4 * i + 2),
            stem + "mlp.down_proj.weight": random_tensor(width, 256, dtype=dtype, seed=4 * i + 3),
            stem + "mlp.up_proj.weight": random_tensor(256, width, dtype=dtype, seed=4 * i + 4),
            stem + "self_attn.o_proj.weight": random_tensor(
                width, width, dtype=dtype, seed=4 * i + 5
            ),
        }
    tensors["model.norm.weight"] = random_tensor(width, dtype=dtype, seed=98)
    tensors["lm_head.weight"] = random_tensor(32, width, dtype=dtype, seed=99)
    return tensors


def whole_llama(layers: int = 2) -> dict[str, Tensor]:
    """Every tensor of a Llama's layers, rows and columns of different sizes.

    Four heads of queries read two heads of values, 32 each.
    """
    shapes = {
        "input_layernorm": (128,),
        "self_attn.q_proj": (128, 128),
        "self_attn.k_proj": (64, 128),
        "self_attn.v_proj": (64, 128),
        "self_attn.o_proj": (128, 128),
        "post_attention_layernorm": (128,),
        "mlp.gate_proj": (192, 128),
        "mlp.up_proj": (192, 128),
        "mlp.down_proj": (128, 192),
    }
    tensors = {"model.embed_tokens.weight": random_tensor(32, 128, seed=1)}
    random = np.random.default_rng(2)
    for i in range(layers):
        for part, shape in shapes.items():
            values = random.normal(0, 0.02, shape) * np.exp(random.normal(0, 0.5, shape[-1:]))
            values *= np.exp(random.normal(0, 0.5, (*shape[:-1], 1)))
            tensors[f"model.layers.{i}.{part}.weight"] = tensor(values)
    return tensors


def whole_llama_config() -> dict[str, Any]:
    """Its config.json."""
    return {"model_type": "llama", "num_attention_heads": 4, "head_dim": 32}


def mixed_tensors() -> dict[str, Tensor]:
    """Compressed, padded, 3-D, cast and copied tensors: about fifty blocks in several shards."""
    tensors: dict[str, Tensor] = {}
    for i in range(4):
        tensors |= {
            f"layers.{i}.norm.weight": random_tensor(700, seed=5 * i),
            f"layers.{i}.up.weight": random_tensor(40, 128, seed=5 * i + 1),
            f"layers.{i}.padded.weight": random_tensor(9, 300, dtype="F32", seed=5 * i + 2),
            f"layers.{i}.mlp.experts.gate_up_proj": random_tensor(3, 8, 128, seed=5 * i + 3),
            f"layers.{i}.scale": random_tensor(900, dtype="F16", seed=5 * i + 4),
        }
    return tensors


def expert_tensors(layers: int = 2, experts: int = 4, dtype: str = "BF16") -> dict[str, Tensor]:
    """Single experts of some layers, each with a norm before them, in the order of names."""
    tensors: dict[str, Tensor] = {}
    for i in range(layers):
        tensors[f"model.layers.{i}.norm.weight"] = random_tensor(700, dtype=dtype, seed=99 + i)
        for e in range(experts):
            for n, part in enumerate(("down", "gate", "up")):
                name = f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight"
                tensors[name] = random_tensor(16, 128, dtype=dtype, seed=100 * i + 3 * e + n)
    return tensors


def with_nan(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same with a NaN near the end of one tensor."""
    found = tensors[name]
    return tensors | {name: spoiled(found, tuple(n - 1 for n in found.shape), float("nan"))}


def too_large(tensors: dict[str, Tensor], *layers: int) -> dict[str, Tensor]:
    """The same with a value in these layers that doesn't fit float16."""
    for i in layers:
        name = f"layers.{i}.norm.weight"
        tensors[name] = spoiled(tensors[name], (500,), 1e30)
    return tensors


def safetensors_bytes(tensors: Tensors, metadata: Any = None) -> bytes:
    """A file with the tensors in the given order; `metadata` None for none."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, one in tensors.items():
        end = position + len(one.data)
        entries[name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": [position, end],
        }
        position = end
    return file_bytes(entries, b"".join(one.data for one in tensors.values()))


def file_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header (an object, or bytes as they are), true to its length or not."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    n_text = len(text) if length is None else length
    return n_text.to_bytes(8, "little") + text + data


def tiny_checkpoint(
    path: Path,
    tensors: Tensors | None = None,
    shards: int = 1,
    config: Any = "ordinary",
    names: Sequence[str] = (),
) -> Path:
    """A checkpoint folder; tensors are dealt to the shards in runs.

    config: an object, a text as it is, None for no config.json
    names: of the shard files, where they shall be odd ones
    """
    tensors = llama_tensors() if tensors is None else tensors
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        ordinary = '{\n  "architectures": ["LlamaForCausalLM"],\n  "vocab_size": 32\n}\n'
        as_text = ordinary if config == "ordinary" else config
        text = as_text if isinstance(as_text, str) else json.dumps(as_text, indent=2)
        (path / "config.json").write_bytes(text.encode())
    if shards == 1:
        name = names[0] if names else "model.safetensors"
        (path / name).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
        return path
    weight_map: dict[str, str] = {}
    for number, run in enumerate(np.array_split(np.array(list(tensors), object), shards), 1):
        name = names[number - 1] if names else f"model-{number:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in run}
        (path / name).write_bytes(safetensors_bytes(part, {"format": "pt"}))
        weight_map |= dict.fromkeys(part, name)
    write_index(path, weight_map)
    return path


def write_index(path: Path, weight_map: Any) -> None:
    """model.safetensors.index.json."""
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def hub_snapshot(cache: Path, checkpoint: Path, revision: str = "0123abcd") -> Path:
    """The folder's files as the Hub cache keeps them: contents in blobs/, links in snapshots/."""
    repo = cache / "models--some-org--some--model"
    snapshot = repo / "snapshots" / revision
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in checkpoint.rglob("*") if p.is_file())):
        blob = repo / "blobs" / f"{number:040x}"
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by the safetensors library."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    assert {path.name for path in folder.glob("*.safetensors")} == files
    return {name: one for file in sorted(files) for name, one in read_file(folder / file).items()}


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file, by the safetensors library."""
    return {
        name: Tensor(found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for name, found in safetensors.deserialize(path.read_bytes())
    }


def of_another_writer(folder: Path) -> Path:
    """A TQ3 folder as if tq3 had not written it: without checksums, which tell every change."""
    (folder / "tq3_manifest.json").unlink()
    config = json.loads((folder / "tq_config.json").read_text())
    config["tq3"]["writer"] = "another 1.0"
    (folder / "tq_config.json").write_text(json.dumps(config))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def visible(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, save what an unfinished run keeps for the next one."""
    files = contents(folder)
    return {name: data for name, data in files.items() if not name.startswith(".tq3.part/")}


class FakeFiles:
    """A folder in memory, for tq3.format.checkpoint; sizes may be larger than the bytes."""

    label = "a folder in memory"

    def __init__(self, files: Mapping[str, bytes], sizes: Mapping[str, int] | None = None) -> None:
        self._files = files
        self._sizes = sizes or {}

    def names(self) -> list[str]:
        """The names at the top, sorted."""
        return sorted(name for name in self._files if "/" not in name)

    def tree(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self._files)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._files

    def has_unfinished_run(self) -> bool:
        """Nobody writes here."""
        return False

    def size(self, name: str) -> int:
        """Bytes of a file, or what was said they were."""
        return self._sizes.get(name, len(self._files[name]))

    def stamp(self, name: str) -> str:
        """Its length will do."""
        return f"{self.size(name)} bytes"

    def expect(self, names: Iterable[str]) -> None:
        """It is all there."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes."""
        piece = self._files[name][offset : offset + length]
        assert len(piece) == length, "read beyond the end"
        return piece


def slow_checkpoint(path: Path) -> Path:
    """A sparse file of 400 MB, many seconds of work for the slow codec."""
    shape = [100_000, 2048]
    n_bytes = 2 * shape[0] * shape[1]
    head = file_bytes({"a.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, n_bytes]}})
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + n_bytes)
    return path
