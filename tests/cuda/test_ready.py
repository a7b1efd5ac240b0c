"""Nothing is compiled, loaded or computed for the first time while a CUDA graph is captured."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.cuda.emulated import Device
from support.runtime.layers import activations
from support.runtime.modules import filled

from tq3.errors import UsageError
from tq3.format.layout import GroupLayout
from tq3.runtime import arithmetic, constants
from tq3.runtime.cuda import support
from tq3.runtime.modules import PackedExperts, PackedLinear, PackedRows, PackedWeight

# Of each path, for a layer and for seven experts.
PRODUCTS = "multiply", "share", "split"
TOKENS = (1, 4, 5, 9, 16, 17, 33, 60, 100, 1025)


class Loader(Device):
    """Launches nothing, and only what was loaded."""

    def __init__(self, processors):
        super().__init__(processors=processors)
        self.loaded, self.launched = set(), set()

    def load(self, kernel, instance):
        self.loaded.add((kernel, instance))

    def launch(self, call_):
        assert (call_.kernel, call_.instance) in self.loaded
        self.launched.add((call_.kernel, call_.instance))


@pytest.fixture(params=[1, 132], ids=["one multiprocessor", "an H100's"])
def device(request, monkeypatch):
    found = Loader(request.param)
    monkeypatch.setattr(support, "launcher", lambda _: found)
    for each in (arithmetic.signs, arithmetic.factors, arithmetic.codebook):
        each.cache_clear()
    return found


def never(*_, **__):
    raise AssertionError("a constant that is made by a call")


@pytest.mark.parametrize(
    ("bits", "group", "dtype"), [(3, 128, torch.bfloat16), (4, 32, torch.float32)], ids=str
)
def test_a_layer_has_all_that_its_calls_need_and_nothing_else(
    device, monkeypatch, bits, group, dtype
):
    weight = filled(PackedWeight(GroupLayout((100, 2100), bits, group), dtype=dtype))
    weight.arrange()
    monkeypatch.setattr(arithmetic, "constant", never)
    for tokens in TOKENS:
        weight(activations(tokens, 2100, dtype))
    assert device.launched == device.loaded


def test_experts_have_all_that_their_calls_need_and_nothing_else(device, monkeypatch):
    weight = filled(PackedExperts(GroupLayout((7, 40, 200), 3, 64), dtype=torch.float16))
    weight.arrange()
    monkeypatch.setattr(arithmetic, "constant", never)
    for pairs in TOKENS:
        weight(activations(pairs, 200, torch.float16), torch.arange(pairs) % 7)
    assert device.launched == device.loaded
    assert {kernel for kernel, _ in device.loaded} <= {"rotate_quantise", *PRODUCTS}
    assert not any("multiply_terms" in instance for _, instance in device.loaded)


def test_rows_that_are_looked_up_need_constants_only(device, monkeypatch):
    weight = filled(PackedRows(GroupLayout((70, 200), 3, 64), dtype=torch.bfloat16))
    weight.arrange()
    monkeypatch.setattr(arithmetic, "constant", never)
    assert weight(torch.tensor([3, 69])).shape == (2, 200)
    assert device.loaded == set()


def test_a_cast_and_a_shared_weight_are_made_ready_too(device):
    weight = filled(PackedWeight(GroupLayout((40, 300), 3, 128)))
    other = PackedWeight(weight.group_layout, dtype=torch.float16)
    other.tq_packed, other.tq_norms = weight.tq_packed, weight.tq_norms
    weight.arrange()
    of_float = set(device.loaded)
    no_dtype = "multiply_terms<3", "multiply_shared<3"
    assert all("kF32" in instance or instance.startswith(no_dtype) for _, instance in of_float)
    other.arrange()
    assert {instance.replace("kF32", "kF16") for _, instance in of_float} <= {
        instance for _, instance in device.loaded
    }
    PackedLinear(weight).to(torch.bfloat16)
    assert any("kBF16" in instance for _, instance in device.loaded)
    with pytest.raises(UsageError, match="found torch.float64"):
        PackedLinear(weight).to(torch.float64)


def test_loading_while_a_graph_is_captured_is_refused(monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")
    from tq3.runtime.cuda import compiler, device  # noqa: PLC0415

    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Loader(1))
    for name in ("multi_processor_count", "shared_memory_per_multiprocessor"):
        monkeypatch.setattr(Loader, name, 1, raising=False)
    monkeypatch.setattr(compiler, "compiled", lambda *_: None)
    monkeypatch.setattr(device, "_loaded", lambda _: "function")
    monkeypatch.setattr(device.Device, "_enter", lambda _: None)
    found = device.Device(0, "sm_80")
    with pytest.raises(UsageError, match=r"multiply<1> is not on this.*before the capture, with"):
        found.load("multiply", "multiply<1>")
    capturing = False
    found.load("multiply", "multiply<1>")
    capturing = True
    assert found.load("multiply", "multiply<1>") == "function"


def test_a_constant_is_refused_in_a_capture_as_well(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    with pytest.raises(UsageError, match="constant of tq3's kernels is not on this device yet"):
        arithmetic.factors(256, 32, torch.device("cuda"))


def test_constants_belong_to_no_mode_of_the_caller():
    for each in (arithmetic.signs, arithmetic.factors, arithmetic.codebook):
        each.cache_clear()
    with torch.inference_mode():
        made = *arithmetic.signs(128, CPU), arithmetic.factors(128, 64, CPU)
    assert not any(tensor.is_inference() for tensor in (*made, arithmetic.codebook(3, 128, CPU)))
    first, second = arithmetic.signs(128, CPU)
    assert torch.equal(arithmetic.factors(128, 64, CPU), second / 64**0.5)
    assert constants.constant(first.numpy(), CPU).data_ptr() != first.data_ptr()


CPU = torch.device("cpu")
