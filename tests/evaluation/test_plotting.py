"""The picture of an evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tq3.errors import UsageError
from tq3.evaluation.measures import Measures
from tq3.evaluation.plotting import check_file, draw
from tq3.evaluation.result import ClassLost, Evaluation
from tq3.evaluation.streaming import LayerLost

MEASURES = Measures(1000, 10.0, 0.5, 12.0, 0.6, 0.2, 0.01, 2.0, 0.8, 0.01)
EVALUATION = Evaluation(
    path="some/checkpoint-tq3",
    source="some/checkpoint",
    text="text.txt",
    n_tokens=1000,
    context=512,
    bos=None,
    dtype="float32",
    bits_per_weight=3.5,
    measures=MEASURES,
    layers=tuple(LayerLost(f"model.layers.{i}", 0.03, 0.01 * i) for i in range(6)),
    tensors=(),
    classes=(
        ClassLost("attention", 10, 3.25, replace(MEASURES, kl=0.05)),
        ClassLost("MLP", 10, 3.25, replace(MEASURES, kl=0.11)),
    ),
    seconds=1.0,
    peak_memory_bytes=10**9,
)


def test_classes_layers_and_units_stand_in_the_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    draw(EVALUATION, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    for words in (
        "checkpoint-tq3, 3.50 bits a weight",
        "attention (3.25 bits)",
        "nats a token",
        "0.11",
        "Relative squared error by layer",
        "hidden states after the layer",
    ):
        assert words in text, words


def test_without_classes_the_layers_are_drawn_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    draw(replace(EVALUATION, classes=()), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "nats a token, 1,000 tokens" in text
    assert "only this class" not in text


@pytest.mark.parametrize(("name", "start"), [("x.png", b"\x89PNG"), ("x.PDF", b"%PDF")])
def test_the_ending_says_what_kind_of_picture_it_is(tmp_path, name, start):
    draw(EVALUATION, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["x", "x.txt", "missing/x.png", "."])
def test_a_file_that_cannot_be_drawn_to_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(UsageError):
        check_file(tmp_path / name)
