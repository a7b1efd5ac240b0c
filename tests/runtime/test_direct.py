"""Modules call kernels past torch's dispatcher: to the same bits, and only where nobody watches."""

from __future__ import annotations

import copy
import pickle
import runpy
import weakref
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from support.runtime.layers import activations, assert_same, calls_of, layer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tq3.format.layout import GroupLayout
from tq3.runtime import direct, weight
from tq3.runtime.direct import is_unwatched
from tq3.runtime.modules import PackedLinear, PackedWeight

pytestmark = pytest.mark.skipif(
    find_spec("tq3.runtime._linear") is None, reason="installed without kernels"
)


def packed_linear(rows=37, columns=300, bits=3, group=128, seed=0, bias=False) -> PackedLinear:
    layout = GroupLayout((rows, columns), bits, group)
    weight = PackedWeight(layout)
    codes, norms = layer(rows, layout.groups_per_row, bits, group, seed)
    weight.tq_packed.data.copy_(codes)
    weight.tq_norms.data.copy_(norms)
    return PackedLinear(weight, torch.nn.Parameter(torch.randn(rows)) if bias else None)


def by_the_operator(linear, x):
    layout, parts = linear.weight.group_layout, (linear.weight.tq_packed, linear.weight.tq_norms)
    return torch.ops.tq3.linear(x, *parts, layout.bits, layout.group)


@pytest.fixture
def operator(monkeypatch):
    """Calls of the operator by modules, which is what it returns, are noted."""
    seen, called = [], torch.ops.tq3.linear

    class Noting:
        default = called.default  # torch asks for it when a mode has seen the call

        def __call__(self, *arguments):
            seen.append(arguments)
            return called(*arguments)

    monkeypatch.setattr(torch.ops.tq3, "linear", Noting())
    return seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_operator_bit_for_bit(operator, mode, dtype):
    linear = packed_linear()
    with mode():
        x = activations(24, 300, dtype).view(2, 3, 4, 300)
        for part in (x, x[0], x[0, 0], x[0, 0, 0], x[:, :, ::2], x[:0]):
            found = linear(part)
            assert not operator
            assert_same(found, by_the_operator(linear, part))
            operator.clear()
        many = activations(200, 300, dtype)
        assert_same(linear(many), by_the_operator(linear, many))


class Sees(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class SeesFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Derived(torch.Tensor):
    """What it is given is an error to bypass."""


def negated(x):
    """A view that is still to be multiplied by -1."""
    return torch.complex(x, -x).conj().imag


WATCHED = {
    "a gradient": (nullcontext, lambda x: x.requires_grad_()),
    "a mode": (Sees, None),
    "a mode of functions": (SeesFunctions, None),
    "a profiler": (torch.profiler.profile, None),
    "a subclass": (nullcontext, lambda x: x.as_subclass(Derived)),
    "a negated view": (nullcontext, negated),
}


@pytest.mark.parametrize("name", WATCHED)
def test_who_watches_sees_the_operator(operator, name):
    context, change = WATCHED[name]
    linear, x = packed_linear(), activations(2, 300)
    expected = linear(x)
    x = change(x.clone()) if change else x
    with context():
        found = linear(x)
    assert operator
    assert_same(found.detach().as_subclass(torch.Tensor), expected)


@pytest.mark.filterwarnings("ignore")  # of torch's own: that these are going away
def test_tracers_and_transformations_watch():
    x, seen = torch.zeros(2, 300), []

    def note(x):
        seen.append(is_unwatched(x))
        return x

    note(x)
    torch.vmap(note)(x)
    torch.jit.trace(note, x, check_trace=False)
    note(x.to("meta"))
    assert seen == [True, False, False, False]


PRIVATE = {
    "_dispatch_keys": torch._C,
    "_dispatch_tls_local_include_set": torch._C,
    "_is_torch_function_mode_enabled": torch._C,
    "_profiler_enabled": torch._C._autograd,
    "DispatchKeySet": torch._C,
    "BackendSelect": torch._C.DispatchKey,
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_torch_without_a_private_name_calls_the_operator(operator, monkeypatch, name):
    linear, x = packed_linear(), activations(2, 300)
    expected = linear(x)
    assert not operator
    with monkeypatch.context() as without:
        without.delattr(PRIVATE[name], name)
        other = runpy.run_path(direct.__file__)
    monkeypatch.setattr(weight, "is_unwatched", other["is_unwatched"])
    assert_same(linear(x), expected)
    assert operator


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 384), r"x.shape: found \(2, 384\), expected \(..., 300\)"),
        (torch.zeros(2, 300, dtype=torch.float64), "x.dtype: found torch.float64"),
        (torch.zeros(2, 300, device="meta"), "devices: found meta, cpu"),
        (torch.tensor(1.0), r"x.shape: found \(\)"),
    ],
    ids=["too wide", "float64", "another device", "no dimension"],
)
def test_what_does_not_fit_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        packed_linear()(x)


def test_codes_that_are_no_layers_are_refused_when_they_are_first_used():
    linear = packed_linear()
    linear.weight.tq_packed = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), False)
    with pytest.raises(ValueError, match="packed.shape: found"):
        linear(torch.zeros(2, 300))


def write(old, new):
    """Other values in the same place."""
    old.weight.tq_packed.data.copy_(new.weight.tq_packed)
    old.weight.tq_norms.data.copy_(new.weight.tq_norms)


def replace(old, new):
    """Other parameters in the old ones' place."""
    old.weight.tq_packed, old.weight.tq_norms = new.weight.tq_packed, new.weight.tq_norms


CHANGES = {
    "loaded": lambda old, new: old.load_state_dict(new.state_dict()),
    "assigned": lambda old, new: old.load_state_dict(new.state_dict(), assign=True),
    "replaced": replace,
    "written": write,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_new_codes_are_seen(change):
    old, new, x = packed_linear(), packed_linear(seed=1), activations(2, 300)
    before = old(x)
    change(old, new)
    assert_same(old(x), new(x))
    assert not torch.equal(old(x), before)


def test_codes_that_a_host_takes_away_are_not_held():
    linear = packed_linear()
    linear(activations(2, 300))
    codes = weakref.ref(linear.weight.tq_packed)
    linear.weight.tq_packed = torch.nn.Parameter(torch.zeros(1, dtype=torch.uint8), False)
    assert codes() is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_layer_that_was_used_can_be_copied_and_pickled(again):
    linear, x = packed_linear(bias=True), activations(2, 300)
    expected = linear(x)
    found = again(linear)
    assert_same(found(x), expected)
    found.weight.tq_norms.data.zero_()
    assert_same(linear(x), expected)


def test_a_replica_has_plain_tensors_for_parameters():
    """As nn.DataParallel makes them."""
    linear, x = packed_linear(), activations(2, 300)
    replica = linear.weight._replicate_for_data_parallel()
    for name, parameter in linear.weight.named_parameters():
        setattr(replica, name, parameter.detach())
    assert not replica._parameters
    assert_same(replica(x), linear(x))


def test_an_input_that_changes_in_place_is_quantised_anew():
    layers = [packed_linear(rows, seed=rows) for rows in (3, 40, 70)]
    x = activations(2, 300)
    for linear in layers:
        x[1, 299] += 1
        assert_same(linear(x), by_the_operator(linear, x.clone()))


def test_a_layer_takes_few_calls():
    """30 with Python 3.11 and torch 2.13, two of them the modules'; the operator alone takes 78."""
    linear, x = packed_linear(bias=True), activations(1, 300)
    with torch.no_grad():
        assert calls_of(lambda: linear(x)) <= 33
