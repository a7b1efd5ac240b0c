"""What a thread quantised last is used again for the same input, and for no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from support.runtime.layers import activations, assert_same, layer

from tq3.runtime import reference

if find_spec("tq3.runtime._linear") is None:
    pytest.skip("installed without kernels", allow_module_level=True)

from tq3.runtime.native import available_kernels, get_kernels


def apply(kernels, x, bits=3, group=128, rotation=128, rows=9):
    """A layer of these kernels times x, and the same by the reference."""
    given = x, *layer(rows, -(-x.shape[1] // group), bits, group), bits, group, rotation
    out = x.new_empty(len(x), rows)
    kernels.linear(*given, out)
    return out, reference.linear(*given)


# One after the other: the same input for another layer, then the same bytes, or zeros, as something
# else.
X = activations(4, 256, torch.bfloat16)
TURNS = {
    "as before": (X, {}),
    "another layer": (X, {"rows": 5}),
    "a copy": (X.clone(), {}),
    "other bits": (X, {"bits": 4}),
    "other groups": (X, {"group": 256, "rotation": 128}),
    "other blocks": (X, {"rotation": 64}),
    "another dtype": (X.view(torch.float16), {}),
    "fewer tokens": (X[:2], {}),
    "longer tokens": (X.view(2, 512), {}),
    "shorter ones, padded": (X.flatten()[:800].view(4, 200), {}),
    "one bit": (X.view(torch.int16).bitwise_xor(1).view(torch.bfloat16), {}),
    "no tokens": (X[:0], {}),
    "more than is kept": (activations(300, 2048, torch.bfloat16), {"rows": 2}),
}


@pytest.mark.parametrize("name", available_kernels())
def test_an_input_is_told_from_every_other(name):
    kernels = get_kernels(name)
    for x, options in TURNS.values():
        for each, how in ((X, {}), (x, options), (x, options)):
            assert_same(*apply(kernels, each, **how))


def test_kernels_do_not_take_each_others_form():
    for name in available_kernels() * 2:
        assert_same(*apply(get_kernels(name), X))


def test_threads_have_one_each():
    inputs = [activations(2, 256, torch.bfloat16, seed) for seed in range(4)]

    def again(x):
        return [apply(get_kernels(), x) for _ in range(50)]

    with ThreadPoolExecutor(4) as threads:
        for pairs in threads.map(again, inputs):
            for found, expected in pairs:
                assert_same(found, expected)
