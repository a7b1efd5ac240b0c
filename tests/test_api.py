"""The Python interface: the same names and options as the commands, figures back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, random_tensor, read_tensors, tiny_checkpoint

import tq3
from tq3.cli.app import COMMANDS
from tq3.cli.options import takes_keywords


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "in")


def parameters(function: Callable[..., object]) -> dict[str, object]:
    """Name -> default of a function's parameters."""
    signature = inspect.signature(function)
    return {name: parameter.default for name, parameter in signature.parameters.items()}


@pytest.mark.parametrize("name", ["compress", "inspect", "restore", "verify", "push"])
def test_a_function_has_the_options_of_its_command(name):
    shown_only = {"dry_run", "tensors", "json", "quiet"} - (
        {"dry_run"} if name == "push" else set()
    )
    options = parameters(takes_keywords(COMMANDS[name])).keys() - shown_only
    assert options == parameters(getattr(tq3, name)).keys() - {"on_event", "show_download"}


def test_compress_and_preview_take_the_same_options():
    assert parameters(tq3.compress).keys() - {"out", "on_event"} == parameters(tq3.preview).keys()


def test_a_recipe_is_a_value_or_the_name_of_one_in_every_function(source, tmp_path):
    mixed = tq3.make_recipe(recipe="mixed")
    tq3.compress(source, tmp_path / "a", recipe=mixed)
    tq3.compress(source, tmp_path / "b", recipe="mixed")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert tq3.inspect(source, recipe=mixed) == tq3.inspect(source, recipe="mixed")
    with pytest.raises(tq3.UsageError, match=r"found bits\); leave them out"):
        tq3.preview(source, recipe=mixed, bits=4)


def test_an_option_that_is_none_is_not_given(source):
    assert tq3.preview(source, bits=None, group_size=None, scale=None) == tq3.preview(source)


def test_an_option_of_another_name_is_a_type_error_of_python(source):
    with pytest.raises(TypeError, match="unexpected keyword argument 'bit'"):
        tq3.preview(source, bit=4)  # type: ignore[call-arg]


def test_options_of_a_recipe_are_refused_where_everything_is_compressed(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    with pytest.raises(tq3.UsageError, match=r"found --group-size\)"):
        tq3.inspect(tmp_path / "out", group_size=64)


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
    for description in (tq3.inspect(source, recipe=recipe), tq3.preview(source, recipe=recipe)):
        assert (description.bits, description.group_size) == (2, 32)
        assert description.n_bytes == 4 * 32 + 4 * 4 * 4
