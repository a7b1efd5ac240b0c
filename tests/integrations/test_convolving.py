"""Kept convolutions where the processor has no arithmetic of their dtype."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.integrations.packed_models import load, logits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tq3.integrations.transformers import convolving

CHANNELS = 12
X = torch.randn(2, CHANNELS, 7, generator=torch.Generator().manual_seed(0)).bfloat16()


class Reading(nn.Module):
    """Calls a depthwise convolution, and reads its weight as Gated DeltaNet and Mamba do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        read = F.conv1d(x, weight=weight.unsqueeze(1), bias=bias, padding=3, groups=CHANNELS)
        step = (x[..., :4] * self.conv1d.weight[:, 0, :]).sum(-1)
        return self.conv1d(x), read, step


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(convolving, "EMULATED", frozenset({torch.bfloat16}))
    torch.manual_seed(0)
    return Reading().bfloat16()


class Seen(TorchDispatchMode):
    """Dtypes of the inputs that reach torch's convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten.convolution.default:
            self.dtypes.append(arguments[0].dtype)
        return function(*arguments, **(options or {}))


def test_a_convolution_is_that_of_float32_rounded_once(model):
    step = model(X)[2]
    weight, bias = (p.detach().float() for p in model.conv1d.parameters())
    wanted = F.conv1d(X.float(), weight, bias, padding=3, groups=CHANNELS).bfloat16()
    convolving.convolve_in_float32(model)
    called, read, stepped = model(X)
    assert called.equal(wanted)
    assert read.equal(wanted)
    assert stepped.equal(step)
    assert {type(out) for out in (called, read, stepped)} == {torch.Tensor}


def test_float32_is_taken_where_the_dtype_is_emulated_only(model):
    convolving.convolve_in_float32(model)
    with Seen() as seen:
        model(X)
        model.half()(X.half())
    assert seen.dtypes == [torch.float32] * 2 + [torch.float16] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_modules_of_other_dtypes_stay_what_they_are(model, dtype):
    convolving.convolve_in_float32(model.to(dtype))
    assert type(model.conv1d) is nn.Conv1d


def test_parameters_and_state_stay_what_they_are(model):
    before = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    convolving.convolve_in_float32(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert {type(tensor) for tensor in model.state_dict().values()} == {torch.Tensor}
    model.load_state_dict(state)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_parameter("conv1d.weight").zero_()
    assert not twin.state_dict()["conv1d.weight"].any()
    assert model.state_dict()["conv1d.weight"].equal(state["conv1d.weight"])
    assert model.conv1d.weight.dtype == torch.bfloat16


def test_a_trained_filter_has_its_gradient(model):
    wanted = copy.deepcopy(model).float()
    convolving.convolve_in_float32(model)
    for each, x in ((model, X), (wanted, X.float())):
        each.conv1d(x).float().sum().backward()
    found = model.conv1d._parameters["weight"].grad
    torch.testing.assert_close(found.float(), wanted.conv1d.weight.grad, rtol=2e-2, atol=2e-2)


def test_a_packed_model_of_gated_deltanet_convolves_so(monkeypatch, qwen):
    plain = load(qwen.architecture, qwen.compressed, torch.bfloat16)
    monkeypatch.setattr(convolving, "EMULATED", frozenset({torch.bfloat16}))
    model = load(qwen.architecture, qwen.compressed, torch.bfloat16)
    kinds: set[type] = {type(m) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv3d)}
    assert kinds == {convolving._Conv1d, convolving._Conv3d}
    found, wanted = logits(model), logits(plain)
    assert (found - wanted).norm() <= 2e-2 * wanted.norm()
    state = plain.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
