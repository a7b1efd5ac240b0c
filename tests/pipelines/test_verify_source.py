"""Beside the source: the figures are numpy's, and what is wrong is told and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factories import Tensor, of_another_writer, random_tensor, spoiled, tensor, tiny_checkpoint
from kinds import COMPRESSED, EVERY_KIND, FLOATS, OTHERS, decoded
from spoiling import SHARD, change_tensors, flip_in_tensor

import tq3
from tq3.codec.backend import available_backends

GROUP = 128
CONFIG = {"num_experts": 3}


def compressed(path: Path, tensors: dict[str, Tensor], **options: object) -> tuple[Path, Path]:
    """A source and what compress makes of it; without checksums, which would tell every change."""
    source = tiny_checkpoint(path / "source", tensors, config=CONFIG)
    tq3.compress(source, path / "tq3", **options)
    return source, of_another_writer(path / "tq3")


def compare(path: Path, source: Path, **options: object) -> tq3.Verification:
    return tq3.verify(path, source=source, **options)


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


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return compressed(tmp_path_factory.mktemp("kinds"), EVERY_KIND)


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
    assert unusual == ["tiny.f32.weight"]
    lines = {line.tensor: line for line in result.comparisons}
    assert lines["zeros.weight"].error == 0
    assert lines["one.hot.weight"].error < 1e-6
    assert 0.2 < lines["tiny.f32.weight"].error == lines["tiny.f32.weight"].recoded_error < 0.3


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


def spoil(path: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    change_tensors(path, lambda tensors: tensors.update({name: change(tensors[name])}))


def random_codes(stored: Tensor) -> Tensor:
    return stored._replace(data=np.random.default_rng(0).bytes(len(stored.data)))


def check(result: tq3.Verification) -> list[tuple[str, str | None]]:
    return [(fault.check, fault.tensor) for fault in result.faults]


@pytest.mark.parametrize("name", ["whole.bf16.weight", "padded.bf16.weight", "zeros.weight"])
def test_wrong_codes_are_found_and_codes_of_zeros_do_not_matter(every_kind, tmp_path, name):
    source, path = compressed(tmp_path, EVERY_KIND)
    spoil(path, f"{name}.tq_packed", random_codes)
    expected = [] if name == "zeros.weight" else [("TQ505", name)]
    assert check(compare(path, source)) == expected


def test_a_norm_where_there_were_zeros_is_found(tmp_path):
    source, path = compressed(tmp_path, EVERY_KIND)
    spoil(path, "zeros.weight.tq_norms", lambda old: tensor(np.full(old.shape, 1e-6), "F32"))
    result = compare(path, source)
    assert check(result) == [("TQ505", "zeros.weight")]
    lines = {line["tensor"]: line for line in result.to_dict()["comparisons"]}
    assert lines["zeros.weight"]["error"] is None  # infinite, which JSON does not know


def test_one_wrong_group_of_many_is_found(tmp_path):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(512, 1280)})
    group = 77 * 10 + 3
    spoil(path, "a.weight.tq_packed", lambda old: with_inverted_group(old, group))
    (fault,) = compare(path, source).faults
    assert fault.check == "TQ506"
    assert "1 of 5120 groups" in fault.message
    assert "group 3 of row 77" in fault.message


def with_inverted_group(stored: Tensor, group: int) -> Tensor:
    """Every code of one group becomes that of the opposite sign."""
    codes = np.frombuffer(stored.data, np.uint8).reshape(stored.shape).copy()
    codes[group] ^= 0xFF
    return stored._replace(data=codes.tobytes())


def test_norms_a_little_too_large_are_found_by_encoding_again(tmp_path):
    """Each group is only a little worse: the tensor as a whole tells it."""
    source, path = compressed(tmp_path, {"a.weight": random_tensor(128, 256)}, bits=2)
    spoil(path, "a.weight.tq_norms", lambda old: tensor(old.values * np.float32(1.15), "F32"))
    result = compare(path, source)
    (fault,) = result.faults
    assert fault.check == "TQ505"
    assert "encoding the source again gives 0.1" in fault.message
    (line,) = result.comparisons
    assert line.recoded_error == pytest.approx(0.1142, rel=0.05)


def test_a_better_coding_than_ours_is_no_fault(tmp_path):
    """The norm of least error: smaller than that which keeps the length."""
    weights = random_tensor(512, 1280)
    source, path = compressed(tmp_path, {"a.weight": weights}, scale="norm")
    before = compare(path, source).comparisons[0].error
    exact = weights.values.reshape(-1, GROUP)
    coded = decoded(weights, "F32", scale="norm").values.reshape(-1, GROUP)
    gain = (exact * coded).sum(1) / (coded * coded).sum(1)
    spoil(
        path,
        "a.weight.tq_norms",
        lambda old: tensor(old.values * gain.reshape(old.shape).astype(np.float32), "F32"),
    )
    result = compare(path, source)
    assert result.ok
    assert result.comparisons[0].error < before


def forget_recipe(path: Path) -> None:
    config = json.loads((path / "tq_config.json").read_text())
    del config["tq3"]["recipe"]
    (path / "tq_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("scale", ["norm", "search"])
def test_codes_of_which_nobody_says_how_they_were_chosen_are_judged_as_published_ones(
    tmp_path, scale
):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(512, 512)}, bits=4, scale=scale)
    forget_recipe(path)
    result = compare(path, source)
    assert result.ok
    assert result.comparisons[0].expected == pytest.approx(0.0092)


def test_codes_of_the_norm_that_are_called_searched_are_found(tmp_path):
    tensors = {"a.weight": random_tensor(512, 512)}
    source, path = compressed(tmp_path, tensors, bits=4, scale="norm")
    config = (path / "tq_config.json").read_text()
    (path / "tq_config.json").write_text(config.replace('"norm"', '"search"'))
    (fault,) = compare(path, source).faults
    assert fault.check == "TQ505"


def test_swapped_tensors_are_found(tmp_path):
    names = ("a.weight", "b.weight")
    tensors = {name: random_tensor(128, 128, seed=i) for i, name in enumerate(names)}
    source, path = compressed(tmp_path, tensors)

    def swap(stored: dict[str, Tensor]) -> None:
        for part in (".tq_packed", ".tq_norms"):
            first, second = (name + part for name in names)
            stored[first], stored[second] = stored[second], stored[first]

    change_tensors(path, swap)
    assert check(compare(path, source)) == [("TQ505", name) for name in names]


def test_a_source_that_is_not_finite_is_a_fault(tmp_path):
    source, path = compressed(tmp_path, {"a.weight": random_tensor(128, 128)})
    bad = {"a.weight": spoiled(random_tensor(128, 128), (3, 5), float("nan"))}
    result = compare(path, tiny_checkpoint(tmp_path / "other", bad))
    assert check(result) == [("TQ505", "a.weight")]
    assert result.to_dict()["comparisons"][0]["error"] is None


@pytest.mark.parametrize("name", ["lm_head.weight", "a.bias", "number", "ids", "double.weight"])
def test_one_flipped_bit_of_a_kept_tensor_is_found(tmp_path, name):
    source, path = compressed(tmp_path, EVERY_KIND)
    flip_in_tensor(path / SHARD, name, bit=-8)
    result = compare(path, source)
    assert check(result) == [("TQ504", name)]
    assert "1 of " in result.faults[0].message
    assert [line.tensor for line in result.comparisons if line.exact is False] == [name]


def test_a_kept_value_that_became_infinite_is_found(tmp_path):
    tensors = {"norm.weight": tensor([1.0, 2.0], "F32")}
    source, path = compressed(tmp_path, tensors)
    spoil(path, "norm.weight", lambda _: tensor([1.0, np.inf], "F16"))
    other = tiny_checkpoint(tmp_path / "other", {"norm.weight": tensor([1.0, 70000.0], "F32")})
    (fault,) = compare(path, other).faults
    assert (fault.check, fault.message) == (
        "TQ504",
        "1 finite values of the source are infinite as F16",
    )


@pytest.mark.parametrize("keep_dtype", ["float16", "source"])
def test_kept_tensors_in_either_type_are_exact(tmp_path, keep_dtype):
    source, path = compressed(tmp_path, EVERY_KIND, keep_dtype=keep_dtype)
    assert compare(path, source).ok


def test_missing_foreign_and_reshaped_tensors_are_told(tmp_path):
    _, path = compressed(tmp_path, {n: EVERY_KIND[n] for n in ("ids", "a.bias", "norm.weight")})
    others = {
        "ids": replace_shape(EVERY_KIND["ids"], (5, 1)),
        "a.bias": tensor(np.zeros(7), "F32")._replace(dtype="I32"),
        "lm_head.weight": EVERY_KIND["lm_head.weight"],
    }
    result = compare(path, tiny_checkpoint(tmp_path / "other", others))
    assert check(result) == [
        ("TQ501", "lm_head.weight"),
        ("TQ502", "norm.weight"),
        ("TQ503", "a.bias"),
        ("TQ503", "ids"),
    ]


def replace_shape(one: Tensor, shape: tuple[int, ...]) -> Tensor:
    return one._replace(shape=shape)


def test_experts_of_another_shape_are_not_those_of_the_source(tmp_path):
    name = "layers.0.mlp.experts.gate_up_proj"
    _, path = compressed(tmp_path, {name: EVERY_KIND[name]})
    other = {name: replace_shape(EVERY_KIND[name], (4, 3, 256))}
    assert check(compare(path, tiny_checkpoint(tmp_path / "other", other))) == [("TQ503", name)]


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

    monkeypatch.setattr("tq3.pipelines.verify.in_parallel", backwards)
    assert compare(path, source).comparisons == forwards


def test_a_shard_that_cannot_be_read_is_told_and_hides_no_other(tmp_path):
    source, path = compressed(tmp_path, EVERY_KIND, max_shard_size=20_000)
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[0].write_bytes(b"")
    found = check(compare(path, source))
    assert found == [("TQ201", None)]


def test_a_source_that_is_compressed_or_absent_is_an_error(every_kind, tmp_path):
    _, path = every_kind
    with pytest.raises(tq3.BadInput, match="already quantised"):
        compare(path, path)
    with pytest.raises(tq3.BadInput, match="no such folder"):
        compare(path, tmp_path / "none")


def test_every_source_tensor_of_a_missing_shard_is_not_told_one_by_one(every_kind, tmp_path):
    source, _ = every_kind
    (tmp_path / "tq_config.json").write_text("{}")
    assert [name for name, _ in check(compare(tmp_path, source))] == ["TQ103", "TQ107"]
