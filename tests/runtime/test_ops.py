"""torch.ops.tq3 as torch users meet it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runtime.layers import (
    BITS,
    DTYPES,
    GROUPS,
    activations,
    assert_same,
    decoded,
    error,
    layer,
)

import tq3.runtime.ops
from tq3.runtime import reference

linear, experts = torch.ops.tq3.linear, torch.ops.tq3.experts
COMPILED = find_spec("tq3.runtime._linear") is not None
needs_kernels = pytest.mark.skipif(not COMPILED, reason="installed without kernels")


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_few_tokens_are_the_references_bit_for_bit(bits, dtype):
    x, (packed, norms) = activations(16, 600, dtype), layer(37, 5, bits)
    assert_same(linear(x, packed, norms, bits, 128), reference.linear(x, packed, norms, bits, 128))


@pytest.mark.parametrize("tokens", [1, 17, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_every_width_and_number_of_tokens_is_about_as_exact_as_bfloat16(bits, group, dtype, tokens):
    x, (packed, norms) = activations(tokens, 5 * group - 3, dtype), layer(21, 5, bits, group)
    exact = x.double() @ decoded(packed, norms, bits, group, 5 * group - 3).T
    # One token has 21 outputs here: some of them are small beside what was added up.
    limit = 8e-3 if dtype == torch.bfloat16 or bits == 4 else 2e-3
    assert error(linear(x, packed, norms, bits, group), exact) < limit


def test_small_rotation_blocks_reach_the_kernel():
    x, (packed, norms) = activations(2, 512), layer(9, 4)
    found = linear(x, packed, norms, 3, 128, 32)
    assert error(found, reference.linear(x, packed, norms, 3, 128, 32).double()) < 2e-3
    assert error(found, linear(x, packed, norms, 3, 128).double()) > 0.1


@pytest.mark.parametrize("tokens", [2, 64])
def test_x_may_be_strided_and_of_any_dimensions(tokens):
    packed, norms = layer(9, 4)
    x = activations(tokens * 6, 512)
    flat = linear(x, packed, norms, 3, 128)
    assert_same(
        linear(x.view(tokens, 2, 3, 512), packed, norms, 3, 128), flat.view(tokens, 2, 3, 9)
    )
    assert_same(
        linear(x[::2], packed, norms, 3, 128), linear(x[::2].clone(), packed, norms, 3, 128)
    )
    across = x.T.contiguous().T
    assert_same(linear(across, packed, norms, 3, 128), flat)
    assert_same(linear(x[0], packed, norms, 3, 128), linear(x[:1], packed, norms, 3, 128)[0])


def test_no_tokens_give_no_outputs():
    packed, norms = layer(9, 4)
    assert linear(torch.empty(0, 512), packed, norms, 3, 128).shape == (0, 9)
    assert linear(torch.empty(2, 0, 512), packed, norms, 3, 128).shape == (2, 0, 9)


def test_packed_may_have_any_shape():
    x, (packed, norms) = activations(2, 512), layer(9, 4)
    expected = linear(x, packed, norms, 3, 128)
    for shape in ((9, 4 * 48), (9, 4, 48), (-1,)):
        assert_same(linear(x, packed.view(shape), norms, 3, 128), expected)


@pytest.mark.parametrize("bits", BITS)
def test_experts_are_their_layers_bit_for_bit(bits):
    packed, norms = layer(9, 4, bits, lead=(6,))
    x, chosen = activations(7, 500, torch.bfloat16), torch.tensor([5, 0, 0, 3, 5, 0, 5])
    found = experts(x, packed.view(-1, packed.shape[-1]), norms, chosen, bits, 128)
    for expert in (0, 3, 5):
        rows = chosen == expert
        assert_same(found[rows], linear(x[rows], packed[expert], norms[expert], bits, 128))
    assert experts(x[:0], packed, norms, chosen[:0], bits, 128).shape == (0, 9)


def test_opcheck_finds_nothing():
    x, (packed, norms) = activations(2, 512), layer(9, 4)
    torch.library.opcheck(linear, (x, packed, norms, 3, 128))
    torch.library.opcheck(linear, (x.view(1, 2, 512), packed, norms, 3, 128, 32))
    packed, norms = layer(9, 4, lead=(3,))
    torch.library.opcheck(experts, (x, packed, norms, torch.tensor([2, 0]), 3, 128))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_gives_the_same():
    packed, norms = layer(9, 4)

    def model(x):
        return linear(x.relu(), packed, norms, 3, 128) + 1

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for tokens in (1, 2, 40):
            x = activations(tokens, 512)
            assert_same(compiled(x), model(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_gives_the_same_in_every_mode(mode):
    weight = *layer(9, 4), 3, 128
    expected = linear(activations(2, 512), *weight)
    with mode():
        assert_same(linear(activations(2, 512), *weight), expected)
        assert_same(linear(activations(2, 512).requires_grad_(), *weight).detach(), expected)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "five bits": ({"bits": 5}, "bits: found 5, expected 2, 3 or 4"),
    "a group of 48": ({"group": 48}, "group: found 48"),
    "a rotation above the group": ({"rotation": 256}, "rotation: found 256.*at most.*128"),
    "too many columns": ({"x": torch.zeros(2, 513)}, r"\(2, 513\), expected 385 to 512"),
    "too few columns": ({"x": torch.zeros(2, 384)}, r"\(2, 384\), expected 385 to 512"),
    "no dimension": ({"x": torch.tensor(1.0)}, r"x.shape: found \(\)"),
    "float64": ({"x": torch.zeros(2, 512, dtype=torch.float64)}, "x.dtype: found torch.float64"),
    "packed of floats": ({"packed": torch.zeros(36, 48)}, "packed.dtype: found torch.float32"),
    "too few bytes": ({"packed": torch.zeros(35, 48, dtype=torch.uint8)}, "expected 1728 bytes"),
    "packed with gaps": ({"packed": torch.zeros(36, 96, dtype=torch.uint8)[:, ::2]}, "strided"),
    "norms of halves": ({"norms": torch.zeros(9, 4).half()}, "norms.dtype: found torch.float16"),
    "norms of experts": ({"norms": torch.zeros(1, 9, 4)}, r"norms.shape: found \(1, 9, 4\)"),
    "another device": ({"x": torch.zeros(2, 512, device="meta")}, "devices: found meta, cpu"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_with_what_was_expected(wrong):
    packed, norms = layer(9, 4)
    arguments = {"x": torch.zeros(2, 512), "packed": packed, "norms": norms, "bits": 3}
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        linear(**{**arguments, "group": 128, **change})


@pytest.mark.parametrize("chosen", [[0], torch.tensor([0, 1]).int(), [0, 3], [-1, 0]], ids=str)
def test_experts_that_do_not_fit_are_refused(chosen):
    packed, norms = layer(9, 4, lead=(3,))
    with pytest.raises(ValueError, match="experts: found"):
        experts(torch.zeros(2, 512), packed, norms, torch.as_tensor(chosen), 3, 128)


WITHOUT_KERNELS = """
import sys, warnings, torch, tq3
from tq3.runtime import generic, ops
assert tq3.__file__.startswith(sys.argv[1])
x, packed, norms = torch.randn(2, 512), torch.zeros(36, 48, dtype=torch.uint8), torch.rand(9, 4)
with warnings.catch_warnings(record=True) as warned:
    found = torch.ops.tq3.linear(x, packed, norms, 3, 128)
    torch.ops.tq3.linear(x, packed, norms, 3, 128)
assert [str(w.message).partition(":")[0] for w in warned] == [
    "tq3 was installed without its compiled kernels"
]
assert warned[0].filename == "<tq3>"
assert torch.equal(found, generic.linear(x, packed, norms, 3, 128, 128))
"""


def test_without_kernels_it_says_so_once_and_computes(tmp_path):
    """In a copy of the package without them, as where no compiler was."""
    package = Path(tq3.__file__).parent
    shutil.copytree(package, tmp_path / "tq3", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = (sys.executable, "-c", WITHOUT_KERNELS, tmp_path)
    subprocess.run(
        command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
