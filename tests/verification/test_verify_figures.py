"""Beside the source: the figures are numpy's in any order of blocks, and sound codes are sound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.factories import Tensor, random_tensor, tensor
from support.pipelines.beside import GROUP, compare, compressed
from support.pipelines.kinds import COMPRESSED, EVERY_KIND, FLOATS, OTHERS, decoded

from tq3.codec.backend import available_backends


def expected_figures(source: Tensor) -> dict[str, float]:
    """Errors by numpy in double precision, from the reference codec's weights."""
    exact = source.values.astype(np.float64)
    stored = decoded(source, "F32").values.astype(np.float64)
    width = -(-exact.shape[-1] // GROUP) * GROUP
    rows = exact.reshape(-1, exact.shape[-1])
    padding = [(0, 0), (0, width - rows.shape[1])]
    groups, differences = (
        np.pad(each.reshape(rows.shape), padding).reshape(-1, GROUP)
        for each in (exact, exact - stored)
    )
    energies, errors = (groups**2).sum(1), (differences**2).sum(1)
    relative = np.divide(errors, energies, out=np.zeros_like(errors), where=errors > 0)
    worst = int(relative.argmax())
    lengths = np.sqrt((exact**2).sum()) * np.sqrt((stored**2).sum())
    return {
        "error": errors.sum() / max(energies.sum(), 1e-300),
        "worst_group_error": relative[worst],
        "worst_row": worst // (width // GROUP),
        "worst_group": worst % (width // GROUP),
        "cosine": (exact * stored).sum() / lengths if lengths else None,
    }


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("block_bytes", [1, 5000, 8 << 20])
def test_figures_are_those_of_numpy(every_kind, set_block_bytes, backend, block_bytes):
    source, path = every_kind
    set_block_bytes(block_bytes)
    result = compare(path, source, backend=backend, workers=2)
    assert result.faults == ()
    lines = {line.tensor: line for line in result.comparisons}
    assert set(lines) == set(EVERY_KIND)
    for name, original in COMPRESSED.items():
        line = lines[name]
        assert (line.bits, line.shape, line.exact) == (3, original.shape, None)
        for key, value in expected_figures(original).items():
            found = getattr(line, key)
            if value is None:
                assert found is None, (name, key)
            else:
                assert found == pytest.approx(value, rel=1e-4, abs=1e-9), (name, key)
    for name in FLOATS | OTHERS:
        assert (lines[name].exact, lines[name].bits, lines[name].error) == (True, None, None)


def test_small_odd_and_empty_tensors_are_no_faults(every_kind):
    source, path = every_kind
    result = compare(path, source)
    assert result.ok
    unusual = [notice.split(":")[0] for notice in result.notices if "unusual" in notice]
    # Denormals: their rounding is a large share of them.
    assert unusual == ["tiny.f32.mlp.w2.weight"]
    lines = {line.tensor: line for line in result.comparisons}
    assert lines["zeros.weight"].error == 0
    assert lines["one.hot.weight"].error < 1e-6
    tiny = lines["tiny.f32.mlp.w2.weight"]
    assert 0.2 < tiny.error == tiny.recoded_error < 0.3


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("scale", ["norm", "search"])
def test_gaussian_weights_have_the_error_that_is_expected(tmp_path, bits, group_size, scale):
    tensors = {"a.weight": random_tensor(2048, 256, seed=bits)}
    source, path = compressed(tmp_path, tensors, bits=bits, group_size=group_size, scale=scale)
    (line,) = compare(path, source).comparisons
    assert line.error == pytest.approx(line.expected, rel=0.02)
    assert line.expected < line.limit < 1.25 * line.expected


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "laplace": lambda rng: rng.laplace(size=(256, 512)),
    "student t": lambda rng: rng.standard_t(2, (256, 512)),
    "outliers": lambda rng: rng.normal(size=(256, 512)) * np.where(rng.random(512) < 0.01, 50, 1),
    "sparse": lambda rng: rng.normal(size=(256, 512)) * (rng.random((256, 512)) < 0.02),
    "constant rows": lambda rng: np.repeat(rng.normal(size=(256, 1)), 512, 1),
    "nearly constant": lambda rng: 1 + 0.1 * rng.normal(size=(256, 512)),
    "a few levels": lambda rng: np.round(rng.normal(size=(256, 512)) * 2.5),
}


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scale", ["norm", "search"])
@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_other_distributions_are_no_faults(tmp_path, make, bits, scale):
    weights = tensor(make(np.random.default_rng(1)).astype(np.float32))
    source, path = compressed(tmp_path, {"a.weight": weights}, bits=bits, scale=scale)
    assert compare(path, source).ok


def test_the_number_of_workers_does_not_show_in_a_figure(every_kind, set_block_bytes):
    source, path = every_kind
    set_block_bytes(700)
    answers = [compare(path, source, workers=workers).comparisons for workers in (1, 2, 5)]
    assert answers[0] == answers[1] == answers[2]


def test_the_order_in_which_blocks_end_does_not_show_in_a_figure(
    tmp_path, set_block_bytes, monkeypatch
):
    rng = np.random.default_rng(0)
    # Of so many sizes that their sums are rounded.
    weights = rng.normal(size=(256, 256)) * 10 ** rng.uniform(-6, 6, (256, 1))
    source, path = compressed(tmp_path, {"a.weight": tensor(weights, "F32")})
    set_block_bytes(700)
    forwards = compare(path, source, workers=1).comparisons

    def backwards(items, make_work, *_):
        return map(make_work(), list(items)[::-1])

    monkeypatch.setattr("tq3.verification.verify.in_parallel", backwards)
    assert compare(path, source).comparisons == forwards
