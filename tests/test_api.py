"""The Python interface: the same names and options as the commands, figures back."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, random_tensor, read_tensors, tiny_checkpoint

import tq3
from tq3.cli import app as commands


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "in")


def parameters(function: object) -> dict[str, object]:
    """Name -> default of a function's parameters."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return {name: parameter.default for name, parameter in signature.parameters.items()}


# Named in the singular where an option is repeated; shown by commands, or None, () for "not given".
SHOWN = {"dry_run", "tensors", "json", "quiet"}
SINGULAR = {"sensitive_pattern": "sensitive_patterns"}


@pytest.mark.parametrize("name", ["compress", "restore"])
def test_options_and_defaults_are_those_of_the_command(name):
    options = {
        SINGULAR.get(option, option): default
        for option, default in parameters(getattr(commands, name)).items()
        if option not in SHOWN
    }
    arguments = parameters(getattr(tq3, name))
    assert options.keys() == arguments.keys() - {"on_event"}
    repeated = {"keep", "only", "sensitive_patterns", "also", "without"}
    for option in options.keys() - repeated - {"out"}:  # the command's dry run needs no target
        assert options[option] == arguments[option], option
    assert all(options[option] is None for option in repeated & options.keys())


def test_push_has_the_options_and_defaults_of_the_command():
    options = parameters(vars(commands)["push"])
    arguments = parameters(tq3.push)
    assert options.keys() - {"json", "quiet"} == arguments.keys() - {"on_event"}
    assert all(options[name] == arguments[name] for name in options.keys() & arguments.keys())


def test_compress_takes_texts_and_paths(source, tmp_path):
    tq3.compress(str(source), str(tmp_path / "a"))
    tq3.compress(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_on_event_hears_what_the_pipeline_yields(source, tmp_path):
    heard: list[object] = []
    tq3.compress(source, tmp_path / "a", workers=1, on_event=heard.append)
    events = list(tq3.compress_checkpoint(source, tmp_path / "b", tq3.Recipe(), workers=1))
    assert [type(event) for event in heard] == [type(event) for event in events]


def test_save_tq3_checkpoint_has_the_signature_of_the_existing_writer(source, tmp_path):
    assert parameters(tq3.save_tq3_checkpoint) == {
        "model_id": inspect.Parameter.empty,
        "output_dir": inspect.Parameter.empty,
        "bits": 3,
        "group_size": 128,
        "sensitive_bits": None,
        "max_shard_bytes": 5 * 2**30,
    }
    tq3.save_tq3_checkpoint(source, tmp_path / "a", 2, 64, 4, 40_000)
    tq3.compress(
        source, tmp_path / "b", bits=2, group_size=64, sensitive_bits=4, max_shard_size=40_000
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_glob_is_one_glob_and_not_its_letters(source, tmp_path):
    """`keep="*.x"` cut into letters would hold a "*" that keeps everything."""
    tq3.compress(source, tmp_path / "out", keep="*.down_proj.weight")
    packed = [name for name in read_tensors(tmp_path / "out") if name.endswith(".tq_packed")]
    assert len(packed) == 4


def test_no_globs_are_none_or_nothing(source, tmp_path):
    tq3.compress(source, tmp_path / "a", keep=None, only=None, also=None, without=None)
    tq3.compress(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_errors_have_one_root_and_their_own_exit_codes():
    kinds = tq3.Tq3Error.__subclasses__()
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "UsageError": 2,
        "BadInput": 3,
        "StorageError": 4,
        "VerificationFailed": 5,
        "NetworkError": 6,
    }


ALL: dict[str, Any] = {
    "file": "f.safetensors",
    "tensor": "a.weight",
    "found": 5,
    "expected": 6,
    "fix": "do that",
}
SENTENCES = {
    (): "wrong",
    ("file",): "f.safetensors: wrong",
    ("tensor",): "tensor 'a.weight': wrong",
    ("found", "fix"): "wrong (found 5); do that",
    tuple(ALL): "f.safetensors: tensor 'a.weight': wrong (found 5, expected 6); do that",
}


@pytest.mark.parametrize(("given", "sentence"), SENTENCES.items())
def test_an_error_is_one_sentence_of_what_is_known(given, sentence):
    error = tq3.BadInput("wrong", **{key: ALL[key] for key in given})
    assert str(error) == sentence
    assert error.tensor == ("a.weight" if "tensor" in given else None)


def test_zero_is_something_that_was_found():
    assert str(tq3.BadInput("wrong", found=0, expected=0)) == "wrong (found 0, expected 0)"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="decompress"):
        tq3.decompress  # noqa: B018


def test_the_version_is_that_of_pyproject():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{tq3.__version__}"\n' in text


def test_a_star_import_brings_every_exported_name():
    names: dict[str, object] = {}
    exec("from tq3 import *", names)
    assert set(tq3.__all__) <= names.keys()


def test_inspect_and_preview_use_the_recipe(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(4, 128)})
    recipe = tq3.Recipe(bits=2, group_size=32)
    for description in (tq3.inspect(source, recipe), tq3.preview(source, recipe)):
        assert (description.bits, description.group_size) == (2, 32)
        assert description.n_bytes == 4 * 32 + 4 * 4 * 4
