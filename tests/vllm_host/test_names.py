"""How a checkpoint is recognised, by which names, and what is left to other packages."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from checkpoints import as_published, make, tiny
from engine import answers, assert_same, engine, greedy
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization import (
    get_quantization_config,
    register_quantization_config,
)

from tq3.errors import BadInput
from tq3.integrations.vllm import register
from tq3.integrations.vllm.config import Tq3Config

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"


@pytest.fixture(scope="module")
def llama(work):
    return make(tiny("llama"), work / "llama", FLOAT32)


@pytest.fixture(scope="module")
def llama_text(llama):
    return answers(llama.dense, FLOAT32)


@pytest.mark.parametrize("name", [None, "turboquant", "tq3"])
def test_our_folder_is_recognised_and_answers_as_the_dense_model(llama, llama_text, name):
    with engine(llama.packed, FLOAT32, quantization=name) as llm:
        assert_same(greedy(llm), llama_text, FLOAT32)


@pytest.mark.parametrize("name", ["turboquant", "tq3"])
def test_a_published_folder_is_served_with_the_flag(llama, llama_text, name):
    with engine(as_published(llama).packed, FLOAT32, quantization=name) as llm:
        assert_same(greedy(llm), llama_text, FLOAT32)


def test_a_published_folder_is_not_loaded_without_the_flag(llama):
    """Nothing in it says that it is packed: vLLM finds tensors that it has no place for."""
    folder = as_published(llama).packed
    with pytest.raises(Exception, match="tq_(packed|norms)"), engine(folder, FLOAT32):
        pass


def test_a_folder_without_packed_weights_is_refused(llama, tmp_path):
    for file in llama.dense.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    (tmp_path / "tq_config.json").write_text(
        json.dumps({"bits": 3, "group_size": 128, "format": "tq3_native"})
    )
    with (
        pytest.raises(Exception, match="no packed weights"),
        engine(tmp_path, FLOAT32, quantization="tq3"),
    ):
        pass


def test_a_state_that_vllm_saved_is_refused_and_called_so(llama, tmp_path):
    with engine(llama.packed, FLOAT32) as llm:
        llm.collective_rpc(_save_state, args=(str(tmp_path),))
    with pytest.raises(BadInput, match="as vLLM saved them") as refused:
        Tq3Config(128).maybe_update_config(str(tmp_path))
    assert "`tq3 compress`" in str(refused.value)


def _save_state(worker: Any, folder: str) -> None:
    worker.save_sharded_state(folder)


@pytest.fixture
def taken():
    """The name "turboquant" belongs to another package, which came before or after us."""

    class Other(Tq3Config):
        pass

    register_quantization_config("turboquant")(Other)
    yield Other
    register_quantization_config("turboquant")(Tq3Config)


@pytest.fixture
def log(monkeypatch, caplog):
    """What vLLM's loggers say, which keep it to themselves otherwise."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog


def test_a_name_of_another_package_is_left_to_it_and_ours_serves(llama, llama_text, taken, log):
    register()
    assert "'turboquant' belongs to another package and was left to it" in log.text
    assert get_quantization_config("turboquant") is taken
    with engine(llama.packed, FLOAT32) as llm:
        assert llm.llm_engine.vllm_config.model_config.quantization == "tq3"
        assert_same(greedy(llm), llama_text, FLOAT32)


def test_a_checkpoint_of_another_package_or_asked_for_as_theirs_is_not_claimed(taken):
    ours = {"quant_method": "turboquant", "format": "tq3_native"}
    override = Tq3Config.override_quantization_method
    assert override(ours, None) == override(ours, "tq3") == "tq3"
    assert override(ours, "turboquant") is None
    assert override(ours | {"format": "other"}, None) is None


def test_a_layer_of_another_package_is_left_to_it(monkeypatch, log):
    class Other(ReplicatedLinear):
        pass

    monkeypatch.setitem(op_registry_oot, "ReplicatedLinear", Other)
    register()
    assert "layer ReplicatedLinear belongs to another package" in log.text
    assert op_registry_oot["ReplicatedLinear"] is Other
