"""What code is told that takes a packed weight for the tensor in whose place it stands."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.runtime.modules import packed_weight

from tq3.errors import UsageError

X = torch.ones(200, 24)
NAME = "model.layers.3.mixer.dt_proj.weight"

REFUSED = r"can't be read or changed.*`weight.dequantize\(\)`.*`model.dequantize\(\)`.*tq3 restore"

READS = {
    "data": lambda w: w.data,
    "data set": lambda w: setattr(w, "data", X),
    "grad set": lambda w: setattr(w, "grad", X),
    "w @ x": lambda w: w @ X,
    "x @ w": lambda w: X @ w,
    "linear": lambda w: torch.nn.functional.linear(X.T, w),
    "bias of linear": lambda w: torch.nn.functional.linear(X.T, X.T, bias=w),
    "cat": lambda w: torch.cat([X, w]),
    "init": torch.nn.init.normal_,
    "sum": lambda w: w + 1,
    "product": lambda w: 2 * w,
    "negative": lambda w: -w,
    "less": lambda w: w < X,
    "less than a number": lambda w: w < 1,
    "at least a number": lambda w: w >= 1,
    "in place": lambda w: w.div_(2),
    "T": lambda w: w.T,
    "method": lambda w: w.transpose(0, 1),
    "rows": lambda w: w[:3],
    "set": lambda w: w.__setitem__(0, 1.0),
    "iteration": list,
    "float": float,
    "numpy": np.asarray,
    "a cast": lambda w: w.float(),
    "another": lambda w: w.to(torch.float16),
    "copy": lambda w: torch.empty(24, 200).copy_(w),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_who_wants_its_values_is_told_what_to_do_and_for_which_tensor(read):
    weight = packed_weight((24, 200), tensor=NAME)
    with pytest.raises(UsageError, match=REFUSED) as caught:
        read(weight)
    assert caught.value.tensor == NAME
    assert "--keep 'model.layers.*.mixer.dt_proj.weight'" in str(caught.value)


def test_without_a_name_there_is_nothing_to_keep():
    with pytest.raises(UsageError, match="^the values of a packed weight") as caught:
        packed_weight((24, 200)).data[:3] = 0
    assert "--keep" not in str(caught.value)


def test_what_needs_no_values_is_answered():
    weight = packed_weight((24, 200), dtype=torch.bfloat16)
    assert weight.shape == weight.size() == (24, 200)
    assert (weight.size(1), weight.size(-1), len(weight)) == (200, 200, 24)
    assert (weight.ndim, weight.dim(), weight.numel()) == (2, 2, 4800)
    assert (weight.dtype, weight.device.type) == (torch.bfloat16, "cpu")
    assert weight.requires_grad is False
    assert weight


def test_it_answers_as_the_decoded_weight_where_that_needs_no_values():
    weight = packed_weight((24, 200), dtype=torch.bfloat16)
    dense = weight.dequantize()
    for name in ("is_cuda", "is_cpu", "nbytes", "itemsize", "grad", "is_leaf", "layout"):
        assert getattr(weight, name) == getattr(dense, name)
    for name in ("element_size", "is_contiguous", "is_floating_point", "stride", "nelement"):
        assert getattr(weight, name)() == getattr(dense, name)()
    weight.grad = None
    for like in (torch.zeros_like, torch.ones_like):
        assert torch.equal(like(weight), like(dense))
    assert torch.zeros_like(weight, dtype=torch.int8).dtype == torch.int8
    assert torch.equal(weight.new_zeros(3), dense.new_zeros(3))


def test_who_asks_whether_it_has_something_is_not_stopped():
    weight = packed_weight((24, 200))
    assert not hasattr(weight, "div_")
    assert getattr(weight, "grad", None) is None
    assert getattr(weight, "quant_state", None) is None
    assert not isinstance(weight, torch.Tensor)
    assert weight in {weight}
    assert copy.deepcopy(weight).shape == weight.shape
    with pytest.raises(AttributeError, match="has no attribute 'quant_state'"):
        _ = weight.quant_state
