"""scripts/quality: bits count scales and padding, errors are those of the schemes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from quality import higgs
from quality.bench import relative_error
from quality.ours import RULES, Format
from quality.texts import paragraphs

# Not in the test environment: 34 MB for one script. scripts/measure_quality.py says how to get it.
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="needs xllamacpp",
)


@pytest.fixture(scope="module")
def weight():
    return torch.randn(64, 640, generator=torch.Generator().manual_seed(0))


def error(weight, coded):
    return relative_error({"it": weight}, {"it": coded.weight})


@pytest.mark.parametrize(
    ("written", "cols", "bits"),
    [
        (Format(3), 640, 3.25),
        (Format(3, norms="float16"), 640, 3.125),
        (Format(4, 64, norms="float16"), 640, 4.25),
        (Format(3), 576, 3.25 * 640 / 576),
        (Format(3, 64), 576, 3.5),
    ],
)
def test_our_bits_count_norms_and_padding(written, cols, bits):
    assert written.code(torch.ones(8, cols)).bits == bits * 8 * cols


def test_half_size_norms_cost_no_error(weight):
    full, half = (
        error(weight, Format(3, norms=norms).code(weight)) for norms in ("float32", "float16")
    )
    assert half == pytest.approx(full, rel=1e-3)


def test_each_gain_rule_does_what_it_says(weight):
    written = {rule: Format(3, rule=rule).code(weight).weight.view(-1, 128) for rule in RULES}
    groups = weight.view(-1, 128)
    keeping = written["norm-preserving"]
    torch.testing.assert_close(keeping.norm(dim=1), groups.norm(dim=1), rtol=1e-4, atol=1e-4)
    product = (groups * written["unbiased"]).sum(1)
    torch.testing.assert_close(product, (groups * groups).sum(1), rtol=1e-4, atol=1e-3)
    errors = [float((written[rule] - groups).norm()) for rule in RULES]
    assert errors == sorted(errors)


@pytest.mark.parametrize(("bits", "expected"), [(3, 0.0296), (4, 0.00772)])
def test_higgs_has_the_error_of_its_grid_at_a_sixteenth_of_a_bit_more(weight, bits, expected):
    coded = higgs.code(weight, bits)
    assert coded.bits == (bits + 1 / 16) * weight.numel()
    assert error(weight, coded) == pytest.approx(expected, rel=0.02)


@needs_llama
@pytest.mark.parametrize(
    ("kind", "bits", "at_most"),
    [
        ("Q3_K", 3.4375, 0.025),
        ("IQ3_S", 3.4375, 0.03),
        ("IQ4_XS", 4.25, 0.0065),
        ("Q4_K", 4.5, 0.006),
    ],
)
def test_llamas_types_decode_what_they_encode(weight, kind, bits, at_most):
    from quality import llama  # noqa: PLC0415

    coded = llama.code(weight, kind)
    assert coded.bits == bits * weight.numel()
    assert error(weight, coded) < at_most


def test_paragraphs_are_text_without_markup_and_listings():
    page = (
        '<p>menu</p><div class="section"><div class="para">One <em>small</em>\n step <pre>ls</pre>'
        '<div class="para">inside</div></div><div class="note">no</div></div>'
        '<div class="para"> </div>'
    )
    assert paragraphs(page) == ["One small step inside"]
