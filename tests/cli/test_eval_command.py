"""tq3 eval as a command: what it prints, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.evaluation.evaluated import Pair, make_pair
from support.models.tiny_models import ARCHITECTURES
from typer.testing import CliRunner, Result

import tq3
from tq3.cli.app import app


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(ARCHITECTURES[0], tmp_path_factory.mktemp("llama"))


def evaluate(pair: Pair, *options: object) -> Result:
    arguments = ("eval", pair.out, "--source", pair.source, "--text", pair.text, *options)
    few = ("--tokens", 40, "--context", 16)
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *few)])


def test_it_shows_figures_classes_layers_and_tensors_and_draws_them(pair, tmp_path):
    run = evaluate(pair, "--by-class", "--plot", tmp_path / "x.png")
    assert run.exit_code == 0, run.output
    for words in (
        "40 tokens in sequences of 16",
        "nats a token, one token in a thousand above",
        "only this class compressed",
        "attention",
        "model.layers.1 ",
        "_proj.weight",
    ):
        assert words in run.stdout, words
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_json_is_one_object_with_all_figures(pair):
    run = evaluate(pair, "--json")
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["measures"]["n_tokens"] == 15 + 15 + 7
    assert found["measures"]["kl"] > 0
    assert [layer["name"] for layer in found["layers"]] == ["model.layers.0", "model.layers.1"]
    assert len(found["tensors"]) == 14


def test_saved_figures_are_those_of_the_card_and_the_checkpoint_stays_sound(pair):
    run = evaluate(pair, "--save", "--json")
    assert run.exit_code == 0, run.output
    kl = json.loads(run.stdout)["measures"]["kl"]
    assert f"| {kl:.4f} ± " in tq3.make_card(pair.out, "me/tiny")
    assert tq3.verify(pair.out).ok


def test_figures_of_a_repository_can_not_be_saved_in_it(pair):
    run = evaluate(pair._replace(out="org/model"), "--save")
    assert run.exit_code == 2
    assert "--save writes into the folder that is measured" in run.stderr


def test_quiet_prints_nothing(pair):
    run = evaluate(pair, "--quiet")
    assert (run.exit_code, run.output) == (0, "")


def test_a_picture_of_no_kind_is_refused_at_once(pair, tmp_path):
    run = evaluate(pair, "--plot", tmp_path / "x.doc")
    assert run.exit_code == 2
    assert "what kind of picture" in run.stderr


def test_a_text_that_is_not_there_is_named(pair, tmp_path):
    run = evaluate(pair._replace(text=tmp_path / "no.txt"))
    assert run.exit_code == 4
    assert "no.txt" in run.stderr


HIDING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "{package}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from tq3.__main__ import main
main()
"""


@pytest.mark.parametrize("package", ["torch", "transformers", "matplotlib", "accelerate"])
def test_a_missing_package_has_a_sentence_that_names_the_extra(package, tmp_path):
    code = HIDING.format(package=package)
    command = (sys.executable, "-c", code, "eval", "out", "--source", "in", "--plot", "x.png")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert f"tq3 eval needs the package {package}; pip install 'tq3[eval]'" in run.stderr


def test_help_and_the_other_commands_import_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from tq3.cli.app import app;"
        "assert CliRunner().invoke(app, ['eval', '--help']).exit_code == 0;"
        "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run((sys.executable, "-c", code), check=True, cwd=Path(__file__).parent)
