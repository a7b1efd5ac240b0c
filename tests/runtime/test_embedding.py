"""torch.ops.tq3.embedding: rows of a packed weight, as the format defines them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.runtime.layers import BITS, DTYPES, GROUPS, assert_same, layer

import tq3.runtime.ops  # noqa: F401  it defines torch.ops.tq3
from tq3.runtime import generic, reference, rows

embedding = torch.ops.tq3.embedding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_rows_are_the_references_bit_for_bit(bits, group, dtype):
    packed, norms = layer(19, 3, bits, group)
    ids = torch.tensor([[18, 0, 7], [7, 7, 3]])
    for columns in (3 * group, 2 * group + 1):
        wanted = reference.embedding(ids, packed, norms, bits, group, columns, dtype)
        assert wanted.shape == (2, 3, columns)
        assert_same(embedding(ids, packed, norms, bits, group, columns, dtype), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_other_devices_compute_the_same_bits(bits, group, dtype):
    """Their path, on the processor; norms from denormal to infinite."""
    packed, norms = layer(9, 3, bits, group)
    norms[0], norms[1], norms[2] = 1e-42, 3e38, torch.inf
    wanted = reference.embedding(torch.arange(9), packed, norms, bits, group, 3 * group - 5, dtype)
    codes = generic.unpack(packed, bits)
    assert_same(rows.decode_codes(codes, norms, bits, group, 3 * group - 5, dtype), wanted)


def test_ids_may_have_any_shape_and_packed_too():
    packed, norms = layer(9, 4)
    wanted = reference.embedding(torch.tensor(5), packed, norms, 3, 128, 500, torch.float32)
    for shape in ((), (1,), (1, 1, 1)):
        found = embedding(
            torch.full(shape, 5), packed.view(9, -1), norms, 3, 128, 500, torch.float32
        )
        assert_same(found, wanted.view(*shape, 500))
    ids = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32).T
    assert_same(
        embedding(ids, packed, norms, 3, 128, 500, torch.float16),
        reference.embedding(ids, packed, norms, 3, 128, 500, torch.float16),
    )
    assert embedding(ids[:0], packed, norms, 3, 128, 500, torch.float16).shape == (0, 2, 500)


@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_an_id_beyond_the_rows_is_the_error_that_torch_gives(wrong):
    packed, norms = layer(9, 4)
    with pytest.raises(IndexError, match="out of range"):
        embedding(torch.tensor([0, wrong]), packed, norms, 3, 128, 512, torch.float32)
    with pytest.raises(IndexError, match="out of range"):
        torch.nn.functional.embedding(torch.tensor([0, wrong]), torch.zeros(9, 4))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "five bits": ({"bits": 5}, "bits: found 5, expected 2, 3 or 4"),
    "a group of 48": ({"group": 48}, "group: found 48"),
    "too many columns": ({"columns": 513}, "columns: found 513, expected 385 to 512"),
    "too few columns": ({"columns": 384}, "columns: found 384, expected 385 to 512"),
    "ids of floats": ({"ids": torch.zeros(2)}, "ids.dtype: found torch.float32"),
    "float64": ({"dtype": torch.float64}, "dtype: found torch.float64"),
    "packed of floats": ({"packed": torch.zeros(36, 48)}, "packed.dtype: found torch.float32"),
    "too few bytes": ({"packed": torch.zeros(35, 48, dtype=torch.uint8)}, "expected 1728 bytes"),
    "norms of halves": ({"norms": torch.zeros(9, 4).half()}, "norms.dtype: found torch.float16"),
    "norms of experts": ({"norms": torch.zeros(1, 9, 4)}, r"norms.shape: found \(1, 9, 4\)"),
    "another device": (
        {"ids": torch.zeros(2, dtype=torch.int64, device="meta")},
        "devices: found meta, cpu",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_with_what_was_expected(wrong):
    packed, norms = layer(9, 4)
    arguments = {"ids": torch.tensor([1]), "packed": packed, "norms": norms, "bits": 3}
    arguments |= {"group": 128, "columns": 512, "dtype": torch.float32}
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        embedding(**{**arguments, **change})


def test_opcheck_finds_nothing():
    packed, norms = layer(9, 4, 4)
    for ids in (torch.tensor([1, 8]), torch.tensor([[3], [0]])):
        arguments = (ids, packed, norms, 4, 128, 500, torch.bfloat16)
        torch.library.opcheck(embedding, arguments)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_gives_the_same():
    packed, norms = layer(9, 4)

    def model(ids):
        return embedding(ids, packed, norms, 3, 128, 500, torch.bfloat16) * 2

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (1, 2, 40):
        ids = torch.arange(tokens) % 9
        assert_same(compiled(ids), model(ids))
