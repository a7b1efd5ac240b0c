"""scripts/quality: twins compute the same function, and the fast KL is the KL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quality.equalize import Factors
from quality.models import take_off_grid
from quality.ours import Coded, Format
from quality.subject import Subject
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from tq3.evaluation.measures import Beside

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 5000,  # more than Subject takes at once
    "tie_word_embeddings": True,
}
CONFIGS = {"llama": LlamaConfig(**SIZES), "gemma": Gemma3TextConfig(**SIZES, sliding_window=16)}


@pytest.fixture(params=CONFIGS)
def model(request):
    """Norms are noise too: a factor that is not taken back changes the logits."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    for weight in made.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.05)
    made.get_input_embeddings().weight.data = made.get_input_embeddings().weight.bfloat16().float()
    return made


@pytest.fixture
def windows():
    return torch.randint(
        0, SIZES["vocab_size"], (3, 24), generator=torch.Generator().manual_seed(1)
    )


@torch.inference_mode()
def test_a_twin_has_other_weights_and_the_same_logits(model, windows):
    before, weights = model(windows).logits, Subject(model, windows).weights
    weights = {name: weight.clone() for name, weight in weights.items()}
    take_off_grid(model)
    torch.testing.assert_close(model(windows).logits, before, rtol=1e-4, atol=1e-4)
    for name, weight in Subject(model, windows).weights.items():
        changed = (weight != weights[name]).float().mean()
        assert changed > 0.9, name


def test_a_model_beside_itself_diverges_by_nothing(model, windows):
    reading = Subject(model, windows).read({})
    assert reading.divergence.abs().max() < 1e-5
    assert reading.same.all()


@pytest.mark.parametrize("places", [(False, False), (True, False), (False, True), (True, True)])
def test_the_fast_divergence_is_that_of_the_logits(model, windows, places):
    subject = Subject(model, windows)
    coded = {name: Format(3).code(weight).weight for name, weight in subject.weights.items()}
    table = model.get_input_embeddings().weight.detach()
    written = Format(4).code(table).weight.bfloat16().float()
    embeddings, head = (written if there else None for there in places)
    reading = subject.read(coded, embeddings, head)

    exact = subject.hidden()
    for name, weight in coded.items():
        subject.linears[name].weight.data = weight
    if embeddings is not None:
        model.get_input_embeddings().weight = torch.nn.Parameter(embeddings, requires_grad=False)
    beside, head = Beside(), table if head is None else head
    beside.add(exact @ table.T, subject.hidden() @ head.T, windows[:, 1:].flatten())
    torch.testing.assert_close(
        reading.divergence.double(), beside.divergences, rtol=1e-3, atol=1e-5
    )
    measures = beside.measures()
    assert float(reading.same.mean()) == pytest.approx(measures.agreement)
    assert float(reading.loss.mean().exp()) == pytest.approx(measures.perplexity, rel=1e-4)
    assert measures.kl > 1e-3


def test_reading_leaves_the_model_as_it_was(model, windows):
    subject = Subject(model, windows)
    zeros = {name: torch.zeros_like(weight) for name, weight in subject.weights.items()}
    assert subject.read(zeros).divergence.mean() > 1e-3
    assert subject.read({}).divergence.abs().max() < 1e-5


def test_an_exact_reading_is_kept_in_a_file(model, windows, tmp_path: Path):
    first = Subject(model, windows, tmp_path / "exact.pt").exact_loss
    for weight in model.parameters():
        weight.data.zero_()
    assert torch.equal(Subject(model, windows, tmp_path / "exact.pt").exact_loss, first)


def test_equalized_matrices_are_other_ones_and_come_back_scaled(model, tmp_path):
    model.save_pretrained(tmp_path)
    seen = {}

    def exactly(name, weight):
        seen[name] = weight
        return Coded(weight, 0)

    way = Factors(tmp_path).way(exactly)
    for name, linear in model.model.named_modules(prefix="model"):
        if isinstance(linear, torch.nn.Linear):
            weight = linear.weight.detach()
            found = way(f"{name}.weight", weight)
            assert found is not None
            torch.testing.assert_close(found.weight, weight)
            assert (seen[f"{name}.weight"] != weight).float().mean() > 0.1
    assert len(seen) == 2 * 7
