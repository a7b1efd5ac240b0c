"""llama.cpp's own quantisers, through the functions that xllamacpp's library exports.

Its k-quants and i-quants code 256 weights together. Rows of these models are no multiple of that,
so blocks run across the ends of rows here: llama.cpp itself would take a larger type instead
(Q4_0 or IQ4_NL for those of 3 bits, Q5_0 for Q4_K). Nothing gets an importance matrix: all schemes
see the weights alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quality.ours import Coded

# These do without an importance matrix; IQ2_XS and smaller ones don't.
TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K")


def type_in_mix(mix: str, role: str, layer: int, n_layers: int) -> str:
    """The type that llama-quantize gives a linear layer where files are called Q3_K_M or IQ4_XS.

    Of a dense model whose values serve four or more heads each, without an importance matrix
    (llama_tensor_get_type_impl of llama.cpp's src/llama-quant.cpp).
    """
    if mix == "Q3_K_M":
        early = {"v": 2, "down": n_layers // 16}
        if role in early:
            return "Q5_K" if layer < early[role] else "Q4_K"
        return "Q4_K" if role == "o" else "Q3_K"
    if mix == "IQ4_XS":
        raised = role == "v" or (role == "down" and layer < n_layers // 8)
        return "Q5_K" if raised else "IQ4_XS"
    raise ValueError(f"mix: found {mix!r}, expected 'Q3_K_M' or 'IQ4_XS'")


def code(weight: torch.Tensor, kind: str) -> Coded:
    """weight: (rows, cols) float32, their product a multiple of 256; kind: a name of a ggml type"""
    number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[number]
    flat = np.ascontiguousarray(weight.numpy()).reshape(-1)
    n_blocks, rest = divmod(flat.size, block)
    if rest:
        raise ValueError(f"{tuple(weight.shape)}: found {flat.size} weights, not blocks of {block}")
    stored = np.empty(n_blocks * block_bytes, np.uint8)
    _library().ggml_quantize_chunk(number, _of(flat), _of(stored), 0, 1, flat.size, None)
    decoded = np.empty_like(flat)
    getattr(_library(), f"dequantize_row_{_symbol(kind)}")(_of(stored), _of(decoded), flat.size)
    return Coded(torch.from_numpy(decoded.reshape(weight.shape)), 8 * stored.size)


def _symbol(kind: str) -> str:
    """Functions spell Q3_K as q3_K and IQ3_S as iq3_s."""
    return kind.lower().replace("_k", "_K")


def _of(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@cache
def _library() -> ctypes.CDLL:
    """Found, not imported: the package itself needs nothing of us."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xllamacpp is not installed; see scripts/measure_quality.py")
    (file,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(file))
    sizes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, *sizes, pointer)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    for kind in TYPES:
        getattr(library, f"dequantize_row_{_symbol(kind)}").argtypes = (pointer, pointer, sizes[0])
    return library
