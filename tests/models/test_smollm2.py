"""SmolLM2-135M from end to end: compressed, read by others, restored, run in Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.models.tq3_folder import (
    Tensors,
    assert_same,
    assert_stored_is_coded_by,
    assert_stored_is_reference,
    assert_stored_shapes,
    compressed_names,
    decoded,
    kept,
    read_tensors,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import tq3
from tq3.codec.backend import available_backends, get_backend

LAYERS, MATRICES_PER_LAYER = 30, 7
EMBEDDING = "model.embed_tokens.weight"  # tied: it is the head, too
PROMPT = "The capital of France is"

pytestmark = pytest.mark.slow  # a minute for all, with the model that the first one makes


class Model(NamedTuple):
    """The tensors of the source, of the TQ3 folder and of the restored folder; and that folder."""

    source: Tensors
    stored: Tensors
    restored: Tensors
    restored_folder: Path


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    work = tmp_path_factory.mktemp("smollm2")
    tq3.compress(smollm2, work / "tq3", equalize=False)
    tq3.restore(work / "tq3", work / "restored")
    folders = (smollm2, work / "tq3", work / "restored")
    source, stored, restored = map(read_tensors, folders)
    return Model(source, stored, restored, folders[-1])


def test_every_matrix_but_the_embedding_is_compressed(model):
    matrices = {name for name, tensor in model.source.items() if tensor.ndim > 1}
    assert compressed_names(model.stored) == matrices - {EMBEDDING}
    assert len(matrices) == LAYERS * MATRICES_PER_LAYER + 1


def test_every_stored_tensor_equals_the_reference_codec(model):
    """Every eighth row beside the reference, whose search takes a minute for all of them, and all
    rows beside the slowest backend, of which the tests of the codec show that it is the reference.
    """
    codec = get_backend(available_backends()[-2:][0])  # numpy is the last one
    for name in compressed_names(model.stored):
        source = model.source[name]
        packed, norms = model.stored[f"{name}.tq_packed"], model.stored[f"{name}.tq_norms"]
        assert_stored_shapes(source, packed, norms)
        assert_stored_is_coded_by(codec, source, packed, norms)
        of_rows = packed.view(len(source), -1)[::8].reshape(-1, packed.shape[1])
        assert_stored_is_reference(source[::8], of_rows, norms[::8])


def test_every_restored_tensor_equals_the_reference_decoder(model):
    compressed = compressed_names(model.stored)
    assert set(model.restored) == set(model.source)
    for name, source in model.source.items():
        if name in compressed:
            packed, norms = model.stored[f"{name}.tq_packed"], model.stored[f"{name}.tq_norms"]
            wanted = decoded(packed, norms, tuple(source.shape))
        else:
            wanted = kept(source).to(torch.bfloat16)
        assert_same(model.restored[name], wanted, name)


def test_stored_sizes_are_known(model):
    """52 bytes a group of 128: 3.25 bits a weight, here 3.52, as 576 columns are padded to 640."""
    n_groups = sum(
        tensor.numel() for name, tensor in model.stored.items() if name.endswith(".tq_norms")
    )
    total = sum(tensor.nbytes for tensor in model.stored.values())
    kept_bytes = sum(tensor.nbytes for name, tensor in model.stored.items() if name in model.source)
    assert (n_groups, kept_bytes, total) == (898_560, 56_693_376, 103_418_496)
    assert total == kept_bytes + 52 * n_groups


def test_original_and_restored_generate_greedily_and_repeatably(model, smollm2):
    original = greedy_text(smollm2)
    restored = greedy_text(model.restored_folder)
    assert original.startswith(PROMPT + " Paris.")
    assert restored.startswith(PROMPT)
    assert len(restored) > len(PROMPT)
    assert greedy_text(model.restored_folder) == restored


def greedy_text(folder: Path) -> str:
    """The prompt and 20 greedy tokens. No key may be missing, unexpected or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    return tokenizer.decode(tokens[0])
