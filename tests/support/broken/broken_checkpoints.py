"""TQ3 folders that contradict themselves. Their headers are sound."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from support.broken.cases import Case
from support.factories import Tensor, raw_tensor, safetensors_bytes, tensor

TQ_CONFIG = "tq_config.json"
_WEIGHTS = "model.safetensors"
_READERS = ("inspect", "restore")
_TQ = {"bits": 3, "group_size": 128, "format": "tq3_native", "compressed_layers": 1}
_OURS = {"format_version": 1, "writer": "tq3 0.1.0"}
_CODES = raw_tensor("U8", (4, 48), 8)
_NORMS = Tensor("F32", (4, 1), np.ones(4, np.float32).tobytes())
_WHOLE: dict[str, Any] = {"a.weight": raw_tensor("F16", (4, 128), 16)}
_OF_EXPERTS: dict[str, Any] = {
    "x.experts.up.tq_packed": _CODES,
    "x.experts.up.tq_norms": _NORMS,
}
_CONTRADICT = "contradict each other"


def folder(
    names: str,
    words: str,
    tq: Any = (),
    ours: Any = (),
    commands: tuple[str, ...] = _READERS,
    **tensors: Tensor | None,
) -> Case:
    """A checkpoint of one compressed and one kept tensor with something changed, None for absent.

    tq, ours: keys of tq_config.json, at its top and in its `tq3`; or `tq` is the whole text
    """
    stored = {"packed": _CODES, "norms": _NORMS, "bias": raw_tensor("F16", (4,), 16)} | tensors
    keys = {"packed": "a.weight.tq_packed", "norms": "a.weight.tq_norms", "bias": "a.bias"}
    weights = {keys.get(key, key): one for key, one in stored.items() if one is not None}
    described = _TQ | {"tq3": _OURS | dict(ours)} | dict(() if isinstance(tq, bytes) else tq)
    files = {
        _WEIGHTS: safetensors_bytes(weights, {"format": "pt"}),
        "config.json": b'{"model_type": "llama"}',
        TQ_CONFIG: tq if isinstance(tq, bytes) else json.dumps(described).encode(),
    }
    return Case(files, names, words, commands)


def norms(value: float, words: str, dtype: str = "F32") -> Case:
    """A third norm that can't be one: only who decodes looks at it."""
    bad = tensor([[1.0], [1.0], [value], [1.0]], dtype)
    return folder(_WEIGHTS, words, commands=("restore",), norms=bad)


CONFIG = {
    "tq-config/not-json": folder(TQ_CONFIG, "not JSON", tq=b"{"),
    "tq-config/list": folder(TQ_CONFIG, "not a JSON object", tq=b"[]"),
    "tq-config/bad-utf-8": folder(TQ_CONFIG, "not UTF-8", tq=b'{"\xff": 1}'),
    "tq-config/nested-3000-levels": folder(
        TQ_CONFIG, "nested", tq=b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    ),
    "tq-config/key-twice": folder(TQ_CONFIG, "'bits' twice", tq=b'{"bits": 3, "bits": 4}'),
    "tq-config/another-format": folder(TQ_CONFIG, "unknown format", tq={"format": "tq4"}),
    "tq-config/newer-format": folder(TQ_CONFIG, "newer tq3", ours={"format_version": 2}),
    "tq-config/odd-bits": folder(TQ_CONFIG, "bad bits", tq={"bits": 5}),
    "tq-config/bits-nan": folder(TQ_CONFIG, "bad bits", tq={"bits": float("nan")}),
    "tq-config/another-seed": folder(TQ_CONFIG, "quantizer_seed", tq={"quantizer_seed": 43}),
    "tq-config/odd-sensitive-bits": folder(TQ_CONFIG, "sensitive_bits", tq={"sensitive_bits": 8}),
    "tq-config/huge-count": folder(
        TQ_CONFIG, "compressed_layers", tq={"compressed_layers": 10**400}
    ),
    "tq-config/negative-bytes": folder(TQ_CONFIG, "source_bytes", ours={"source_bytes": -1}),
    "tq-config/broken-recipe": folder(
        TQ_CONFIG, "not a recipe", ours={"recipe": {"bits": [[3]]}}, commands=("inspect",)
    ),
}

CONTRADICTIONS = {
    "tq3/other-group-size": folder(_WEIGHTS, _CONTRADICT, tq={"group_size": 64}),
    "tq3/other-width": folder(TQ_CONFIG, "its width", tq={"bits": 4}),
    "tq3/other-group-size-and-width": folder(
        TQ_CONFIG,
        "its width",
        tq={"group_size": 256, "bits": 4},
        packed=raw_tensor("U8", (4, 64), 8),
    ),
    "tq3/a-tensor-was-lost": folder(TQ_CONFIG, "not all compressed", tq={"compressed_layers": 2}),
    "tq3/shape-of-an-absent-tensor": folder(
        TQ_CONFIG, "not there", ours={"shapes": {"b": [4, 100]}}
    ),
    "tq3/other-shape": folder(_WEIGHTS, _CONTRADICT, ours={"shapes": {"a.weight": [5, 128]}}),
    "tq3/huge-shape": folder(_WEIGHTS, _CONTRADICT, ours={"shapes": {"a.weight": [2**62, 2**62]}}),
    "tq3/other-columns": folder(_WEIGHTS, _CONTRADICT, tq={"orig_in_dims": {"a.weight": 129}}),
    "tq3/columns-beside-a-shape": folder(
        _WEIGHTS,
        "columns 99999 and 100",
        tq={"orig_in_dims": {"a.weight": 99_999}},
        ours={"shapes": {"a.weight": [4, 100]}},
    ),
    "tq3/a-padded-shape-without-columns": folder(
        _WEIGHTS, "columns 128 and 100", ours={"shapes": {"a.weight": [4, 100]}}
    ),
    "tq3/codes-without-norms": folder(_WEIGHTS, "its .tq_norms is missing", norms=None),
    "tq3/norms-without-codes": folder(_WEIGHTS, "its .tq_packed is missing", packed=None),
    "tq3/stored-twice": folder(_WEIGHTS, "stored twice", **_WHOLE),
    "tq3/too-few-codes": folder(_WEIGHTS, _CONTRADICT, packed=raw_tensor("U8", (3, 48), 8)),
    "tq3/codes-are-int8": folder(_WEIGHTS, _CONTRADICT, packed=raw_tensor("I8", (4, 48), 8)),
    "tq3/norms-are-bf16": folder(_WEIGHTS, _CONTRADICT, norms=raw_tensor("BF16", (4, 1), 16)),
    "tq3/norms-are-flat": folder(_WEIGHTS, _CONTRADICT, norms=raw_tensor("F32", (4,), 32)),
    "tq3/no-codes-and-no-norms": folder(
        _WEIGHTS, _CONTRADICT, packed=Tensor("U8", (0, 48), b""), norms=Tensor("F32", (0, 1), b"")
    ),
    "tq3/uncounted-experts": folder(
        "config.json",
        "does not say how many",
        packed=None,
        norms=None,
        **_OF_EXPERTS,
    ),
    "tq3/compressed-again": folder(_WEIGHTS, "already quantised", commands=("compress",)),
}

NORMS = {
    "norms/nan": norms(float("nan"), "nan at row 2, group 0"),
    "norms/infinite": norms(float("inf"), "inf at row 2, group 0"),
    "norms/negative": norms(-0.5, "-0.5 at row 2, group 0"),
    "norms/f16-nan": norms(float("nan"), "nan at row 2, group 0", "F16"),
    "norms/f16-infinite": norms(float("inf"), "inf at row 2, group 0", "F16"),
    "norms/f16-negative": norms(-0.5, "-0.5 at row 2, group 0", "F16"),
}

CASES = CONFIG | CONTRADICTIONS | NORMS
