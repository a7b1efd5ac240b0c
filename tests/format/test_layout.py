"""Shapes of a compressed tensor."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.format.header import TensorInfo
from tq3.format.layout import GroupLayout

LAYOUTS = st.builds(
    GroupLayout,
    shape=st.lists(st.integers(1, 1000), min_size=2, max_size=3).map(tuple),
    bits=st.sampled_from([2, 3, 4]),
    group=st.sampled_from([32, 64, 128, 256]),
    norm_dtype=st.sampled_from(["F32", "F16"]),
)

# shape, bits, group -> codes, norms; the first four by hand from the format's page
KNOWN = [
    ((4, 128), 3, 128, (4, 48), (4, 1)),
    ((4, 256), 3, 128, (8, 48), (4, 2)),
    ((4, 100), 3, 128, (4, 48), (4, 1)),
    ((2, 3, 300), 3, 128, (18, 48), (6, 3)),
    ((3, 64), 2, 32, (6, 8), (3, 2)),
    ((1, 257), 4, 256, (2, 128), (1, 2)),
]


@pytest.mark.parametrize(("shape", "bits", "group", "codes", "norms"), KNOWN)
def test_codes_and_norms_have_the_shapes_of_the_format(shape, bits, group, codes, norms):
    assert GroupLayout(shape, bits, group).tensors("x.weight") == (
        TensorInfo("x.weight.tq_packed", "U8", codes),
        TensorInfo("x.weight.tq_norms", "F32", norms),
    )


def test_norms_may_be_float16():
    _, norms = GroupLayout((4, 256), 3, 128, "F16").tensors("x.weight")
    assert norms == TensorInfo("x.weight.tq_norms", "F16", (4, 2))


@given(layout=LAYOUTS)
def test_units_make_up_the_whole_tensor_and_each_has_the_same_bytes(layout):
    assert layout.units * layout.unit_cols == prod(layout.shape)
    for info in layout.tensors("x"):
        assert info.n_bytes % layout.units == 0


@given(layout=LAYOUTS)
def test_only_whole_groups_may_be_coded_apart_from_their_row(layout):
    assert layout.is_padded == (layout.shape[-1] % layout.group > 0)
    assert layout.unit_cols == (layout.shape[-1] if layout.is_padded else layout.group)


def test_fused_experts_have_no_suffix():
    packed, norms = GroupLayout((2, 2, 128), 3, 128).tensors("mlp.experts.gate_up_proj")
    assert packed.name == "mlp.experts.gate_up_proj.tq_packed"
    assert norms.name == "mlp.experts.gate_up_proj.tq_norms"
