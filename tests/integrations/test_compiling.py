"""torch.compile takes the whole forward of a packed model as one graph."""

from __future__ import annotations

import shutil

import pytest
import torch
from support.integrations.packed_models import PROMPT, assert_close, generated, load, logits


@pytest.fixture(autouse=True)
def forget_other_models():
    """Transformers wraps every forward in the same function, and torch compiles one eight times."""
    torch.compiler.reset()


def assert_compiles(model, backend: str) -> None:
    """Without a break (`fullgraph` would raise), and to the same logits."""
    whole = torch.compile(model.forward, backend=backend, fullgraph=True)
    assert_close(whole(PROMPT, use_cache=False).logits, logits(model), 1e-4)


def test_every_architecture_is_traced_as_one_graph(case):
    assert_compiles(load(case.architecture, case.compressed), "aot_eager")


def test_a_compiled_forward_generates_the_same(llama):
    model = load(llama.architecture, llama.compressed)
    plain = generated(model, 4)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(generated(model, 4), plain)


@pytest.mark.slow  # half a minute of g++
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # in torch itself
def test_inductor_compiles_the_packed_layers_into_its_code(llama):
    assert_compiles(load(llama.architecture, llama.compressed), "inductor")
