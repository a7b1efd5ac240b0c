"""Layer by layer, every model says what it says when it is in memory whole."""

from __future__ import annotations

import shutil
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.models.tiny_models import ARCHITECTURES, SIZES, Architecture, write_checkpoint
from support.models.tq3_folder import Tensors, read_tensors

from tq3.errors import BadInput
from tq3.evaluation import heads, streaming
from tq3.evaluation.measures import Beside, Measures
from tq3.evaluation.skeleton import Skeleton, build
from tq3.evaluation.streaming import Lost, compare

TEXTS = [
    torch.arange(60).reshape(3, 20) * 7 % SIZES["vocab_size"],
    torch.arange(9).reshape(1, 9) * 5 % SIZES["vocab_size"],
]


class Case(NamedTuple):
    """An architecture's folder and tensors, and those of a model with noise in all weights."""

    architecture: Architecture
    folder: Path
    tensors: Tensors
    noisy_folder: Path
    noisy: Tensors


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: a.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param.name))


def make_case(architecture: Architecture, folder: Path) -> Case:
    write_checkpoint(architecture, folder / "source")
    tensors = read_tensors(folder / "source")
    torch.manual_seed(1)
    noisy = {name: (t + 0.005 * torch.randn(t.shape)).to(t.dtype) for name, t in tensors.items()}
    shutil.copytree(folder / "source", folder / "noisy")
    for file in (folder / "noisy").glob("*.safetensors*"):
        file.unlink()
    save_file(noisy, folder / "noisy" / "model.safetensors", metadata={"format": "pt"})
    return Case(architecture, folder / "source", tensors, folder / "noisy", noisy)


def skeleton(case: Case, dtype: torch.dtype = torch.float32) -> Skeleton:
    config = transformers.AutoConfig.from_pretrained(case.folder)
    return Skeleton(build(case.architecture.model_class, config, dtype), case.tensors)


def run(case: Case, dtype: torch.dtype = torch.float32, **variants: Any) -> dict[str, Lost]:
    """The figures, and that progress comes to its end."""
    steps = compare(
        skeleton(case, dtype),
        case.tensors.__getitem__,
        variants,
        TEXTS,
        lambda name: case.tensors[name].nbytes,
    )
    progress = []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            done = [step.bytes_done for step in progress]
            assert done == sorted(done)
            assert done[-1] == progress[-1].bytes_total > 0
            return end.value


def noisy(case: Case) -> Any:
    return lambda name, _: case.noisy[name]


def whole(case: Case, dtype: torch.dtype = torch.float32) -> Measures:
    """The measures of both models, each loaded by from_pretrained, text by text."""
    beside = Beside()
    models = [
        case.architecture.model_class.from_pretrained(folder, dtype=dtype).eval()
        for folder in (case.folder, case.noisy_folder)
    ]
    for text in TEXTS:
        with torch.no_grad():
            exact, noisy = (model(text).logits[:, :-1].flatten(0, 1) for model in models)
        beside.add(exact, noisy, text[:, 1:].flatten())
    return beside.measures()


def test_figures_are_those_of_the_whole_models(case, monkeypatch):
    monkeypatch.setattr(streaming, "_BATCH", 2)
    monkeypatch.setattr(heads, "_PIECE", 7)
    monkeypatch.setattr(heads, "_KEPT_BYTES", 20 * 4 * SIZES["vocab_size"])
    found = run(case, noisy=noisy(case))["noisy"]
    assert astuple(found.measures) == pytest.approx(astuple(whole(case)), rel=1e-4)
    assert found.measures.n_tokens == 3 * 19 + 8
    assert found.measures.kl > 1e-3


def test_in_bfloat16_too(case):
    found = run(case, torch.bfloat16, noisy=noisy(case))["noisy"]
    assert astuple(found.measures) == pytest.approx(astuple(whole(case, torch.bfloat16)), rel=0.1)


def test_variants_do_not_touch_each_other(case):
    """What a model is compared with itself comes out as nothing, in any company."""
    found = run(case, same=lambda _, tensor: tensor, noisy=noisy(case), again=noisy(case))
    assert found["again"] == found["noisy"]
    assert (found["same"].measures.kl, found["same"].measures.agreement) == (0, 1)
    assert all((layer.weights, layer.hidden) == (0, 0) for layer in found["same"].layers)
    assert all(tensor.error == 0 for tensor in found["same"].tensors)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(ARCHITECTURES[0], tmp_path_factory.mktemp("llama"))


def test_errors_of_tensors_and_layers_are_those_of_their_formulas(llama):
    found = run(llama, noisy=noisy(llama))["noisy"]
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert by_name.keys() == llama.tensors.keys()
    for name, tensor in llama.tensors.items():
        exact, other = tensor.double(), llama.noisy[name].double()
        wanted = float(((other - exact) ** 2).sum() / (exact**2).sum())
        assert by_name[name].relative == pytest.approx(wanted, rel=1e-5)
    for i, layer in enumerate(found.layers):
        inside = [t for name, t in by_name.items() if name.startswith(f"model.layers.{i}.")]
        error, energy = sum(t.error for t in inside), sum(t.energy for t in inside)
        assert layer.name == f"model.layers.{i}"
        assert layer.weights == pytest.approx(error / energy, rel=1e-9)


def test_hidden_states_of_a_layer_are_those_of_the_whole_model(llama):
    found = run(llama, noisy=noisy(llama))["noisy"]
    states: list[list[torch.Tensor]] = [[], []]
    for folder, each in zip((llama.folder, llama.noisy_folder), states, strict=True):
        model = llama.architecture.model_class.from_pretrained(folder, dtype=torch.float32).eval()
        # Not output_hidden_states: its last is what the final norm makes of the last layer's.
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _, __, output, each=each: each.append(output))
        with torch.no_grad():
            for text in TEXTS:
                model(text)
    for i, layer in enumerate(found.layers):
        exact, other = (
            torch.cat([s.flatten(0, 1) for s in each[i::2]]).double() for each in states
        )
        lost = ((other - exact) ** 2).sum(-1) / (exact**2).sum(-1)
        assert layer.hidden == pytest.approx(float(lost.mean()), rel=1e-3)


def test_after_a_run_no_weight_is_left_in_memory(llama):
    made = skeleton(llama)
    steps = compare(made, llama.tensors.__getitem__, {}, TEXTS, lambda _: 1)
    list(steps)
    assert all(parameter.is_meta for parameter in made.model.parameters())


def test_a_run_can_be_given_up_in_the_middle(llama):
    made = skeleton(llama)
    threads = torch.get_num_threads()
    steps = compare(made, llama.tensors.__getitem__, {}, TEXTS, lambda _: 1)
    next(steps)
    steps.close()
    assert torch.get_num_threads() == threads
    assert all(parameter.is_meta for parameter in made.model.parameters())


def test_a_tensor_of_another_shape_is_refused(llama):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(BadInput, match=r"up_proj.*not of the shape.*\[344, 191\]"):
        run(llama, short=lambda n, t: t[:, 1:] if n == name else t)


def test_a_tensor_that_is_missing_is_named(llama):
    tensors = {n: t for n, t in llama.tensors.items() if n != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj\.weight.*has no tensor for this"):
        run(llama._replace(tensors=tensors))
