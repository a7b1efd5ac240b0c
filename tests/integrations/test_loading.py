"""tq3.load, and what happens without this package."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.integrations.packed_models import changed, generated, load, logits
from transformers.quantizers import auto

import tq3
import tq3.integrations.transformers as integration
from tq3.errors import BadInput, UsageError
from tq3.format.recognition import HOW_TO_LOAD
from tq3.runtime.modules import PackedLinear


@pytest.fixture(scope="module")
def published(llama, tmp_path_factory):
    """As other writers leave a folder: config.json says nothing, tq_config.json little."""
    out = tmp_path_factory.mktemp("published") / "tq3"
    tq3.compress(llama.source, out, verbatim_config=True)
    known = {"bits": 3, "group_size": 128, "format": "tq3_native"}
    (out / "tq_config.json").write_text(json.dumps(known))
    return out


def test_load_is_from_pretrained_of_the_class_that_config_json_names(case):
    model = tq3.load(case.compressed, dtype=torch.float32)
    assert type(model) is case.architecture.model_class
    assert torch.equal(logits(model), logits(load(case.architecture, case.compressed)))


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device_map": "auto"}, {"dtype": "auto"}])
def test_load_takes_devices_dtypes_and_the_options_of_from_pretrained(llama, options):
    model = tq3.load(str(llama.compressed), attn_implementation="eager", **options)
    assert (model.device.type, model.dtype) == ("cpu", torch.bfloat16)
    assert model.config._attn_implementation == "eager"
    assert generated(model, 2).shape == (2, 22)


def test_a_published_folder_is_recognised_by_load_or_by_a_config_passed_along(llama, published):
    wanted = logits(load(llama.architecture, llama.compressed))
    assert torch.equal(logits(tq3.load(published, dtype=torch.float32)), wanted)
    config = integration.Tq3Config.from_folder(published)
    model = load(llama.architecture, published, quantization_config=config)
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("which", ["ours", "published"])
def test_an_id_is_found_in_the_cache_of_the_hub(llama, published, tmp_path, which):
    repo = tmp_path / "models--org--model"
    shutil.copytree(llama.compressed if which == "ours" else published, repo / "snapshots" / "0123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    where = {"cache_dir": tmp_path, "local_files_only": True}
    model = tq3.load("org/model", dtype=torch.float32, **where)
    assert torch.equal(logits(model), logits(load(llama.architecture, llama.compressed)))
    with pytest.raises(UsageError, match="org/other: neither a folder nor"):
        tq3.load("org/other", **where)


@pytest.mark.parametrize("which", ["ours", "published"])
def test_a_saved_folder_loads_without_tq_config(llama, published, tmp_path, which):
    model = tq3.load(published if which == "published" else llama.compressed, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "tq_config.json").exists()
    declared = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert declared.pop("tq3")["format_version"] == 1
    original = json.loads((llama.compressed / "config.json").read_text())["quantization_config"]
    assert declared == original
    assert torch.equal(logits(tq3.load(tmp_path, dtype=torch.float16)), logits(model))


def test_what_is_no_tq3_checkpoint_is_said_in_a_sentence(llama, tmp_path):
    with pytest.raises(BadInput, match="no-such: no such folder; give a folder that"):
        tq3.load(tmp_path / "no-such")
    with pytest.raises(BadInput, match="~/no-such: no such folder; give os.path.expanduser"):
        tq3.load("~/no-such")
    with pytest.raises(BadInput, match=r"config.json: a file \(expected its folder\); give .*tq3$"):
        tq3.load(llama.compressed / "config.json")
    with pytest.raises(BadInput, match="not a checkpoint .*expected config.json"):
        tq3.load(tmp_path)
    with pytest.raises(BadInput, match="source: not a TQ3 checkpoint .*tq_config.json"):
        tq3.load(llama.source)
    with pytest.raises(UsageError, match="device or device_map"):
        tq3.load(llama.compressed, device="cpu", device_map="auto")
    config = json.loads((llama.source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="found quant_method 'awq', expected 'turboquant'"):
        tq3.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="config.json: can't be read .*not a valid JSON"):
        tq3.load(tmp_path)


def test_a_missing_pair_is_an_error_and_not_a_random_layer(llama, tmp_path):
    def remove(tensors):
        for suffix in (".tq_packed", ".tq_norms"):
            del tensors[f"model.layers.0.mlp.up_proj.weight{suffix}"]

    with pytest.raises(BadInput, match=r"are missing.*layers.0.mlp.up_proj.weight"):
        tq3.load(changed(llama.compressed, tmp_path / "out", remove))


def test_what_cannot_be_served_is_refused_while_it_loads(llama, tmp_path):
    with pytest.raises(UsageError, match="found torch.float64, expected torch.bfloat16"):
        tq3.load(llama.compressed, dtype=torch.float64)
    (tmp_path / "tq_config.json").write_bytes(b"\xff")
    with pytest.raises(BadInput, match="not UTF-8"):
        integration.Tq3Config.from_folder(tmp_path)


def test_a_folder_that_lacks_a_file_is_said_in_a_sentence(llama, tmp_path):
    shutil.copytree(llama.compressed, tmp_path, dirs_exist_ok=True)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BadInput, match="model.safetensors: a Git LFS pointer.*`git lfs pull`"):
        tq3.load(tmp_path)
    weights.unlink()
    with pytest.raises(BadInput, match="weights can't be read .*no file named model.safetensors"):
        tq3.load(tmp_path)
    config.unlink()
    with pytest.raises(BadInput, match="a checkpoint without its config.json; fetch"):
        tq3.load(tmp_path)


def test_who_asks_how_it_was_loaded_is_told(llama):
    model, info = tq3.load(llama.compressed, output_loading_info=True)
    assert isinstance(model, llama.architecture.model_class)
    assert not any(info.values())


def test_another_package_that_came_first_stays_in_charge(llama, monkeypatch):
    class Other(transformers.quantizers.HfQuantizer):
        pass

    warnings: list[str] = []
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "turboquant", Other)
    monkeypatch.setattr(integration._log, "warning", warnings.append)
    integration.register()
    assert auto.AUTO_QUANTIZER_MAPPING["turboquant"] is Other
    assert ["'turboquant'" in text for text in warnings] == [True]
    with pytest.raises(UsageError, match="another package has registered 'turboquant'"):
        tq3.load(llama.compressed)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_what_to_install(llama, package):
    code = f"import sys, tq3; sys.modules[{package!r}] = None; tq3.load(sys.argv[1])"
    command = (sys.executable, "-c", code, llama.compressed)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"needs the package {package}; pip install 'tq3[transformers]'" in run.stderr


WITHOUT_US = """
import sys, transformers
for folder in sys.argv[1:]:
    for load in (
        lambda: transformers.AutoModelForCausalLM.from_pretrained(folder),
        lambda: transformers.LlamaModel.from_pretrained(folder),
        lambda: transformers.pipeline("text-generation", model=folder),
    ):
        try:
            load()
        except ValueError as error:
            print(str(error).replace("\\n", " "))
"""


def test_without_our_import_transformers_refuses_with_our_sentence(llama, tmp_path):
    """It would leave the compressed layers random, and only warn. So of what it saved itself."""
    model = load(llama.architecture, llama.compressed)
    copy.deepcopy(model).save_pretrained(tmp_path / "model")
    model.model.save_pretrained(str(tmp_path / "part"), True, max_shard_size="50KB")
    folders = llama.compressed, tmp_path / "model", tmp_path / "part"
    command = (sys.executable, "-c", WITHOUT_US, *folders)
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    said = "this model is packed by tq3. pip install 'tq3[transformers]', then"
    assert [said in line for line in run.stdout.splitlines()] == [True] * 9


def test_what_is_dense_when_it_is_saved_any_transformers_loads(llama, tmp_path):
    model = load(llama.architecture, llama.compressed)
    model.save_pretrained(tmp_path / "aside", is_main_process=False)
    assert not (tmp_path / "aside" / "config.json").exists()
    model.dequantize().save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"transformers_weights", "quantization_config"} & config.keys()


def test_after_our_import_any_weight_file_that_config_json_names_is_taken_as_ever():
    quantizer = integration.Tq3Quantizer(integration.Tq3Config())
    for update in (quantizer.update_attn_implementation, quantizer.update_tp_plan):
        config = update(transformers.LlamaConfig(transformers_weights=HOW_TO_LOAD))
        assert not hasattr(config, "transformers_weights")
        config = update(transformers.LlamaConfig(transformers_weights="other.safetensors"))
        assert config.transformers_weights == "other.safetensors"
        assert not hasattr(update(transformers.LlamaConfig()), "transformers_weights")


MODELING = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class PonyConfig(PreTrainedConfig):
    model_type = "pony"

class PonyModel(PreTrainedModel):
    config_class = PonyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = torch.nn.Embedding(64, 128)
        self.up_proj = torch.nn.Linear(128, 128, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

class PonyForMaskedLM(PonyModel):
    pass
"""
AUTO_MAPS = {
    "the base model alone": ({"AutoModel": "PonyModel"}, "PonyModel"),
    "what config.json names": (
        {"AutoModel": "PonyModel", "AutoModelForMaskedLM": "PonyForMaskedLM"},
        "PonyForMaskedLM",
    ),
    "a class that Transformers does not know": (
        {"AutoModelForPonies": "PonyForMaskedLM", "AutoModel": "PonyModel"},
        "PonyModel",
    ),
}


@pytest.mark.parametrize("classes, wanted", AUTO_MAPS.values(), ids=AUTO_MAPS)
def test_code_of_the_checkpoint_is_loaded_by_the_keys_of_its_auto_map(
    classes, wanted, tmp_path, monkeypatch
):
    source, modules = tmp_path / "source", tmp_path / "modules"
    source.mkdir()
    (source / "modeling_pony.py").write_text(MODELING)
    auto_map = {key: f"modeling_pony.{name}" for key, name in classes.items()}
    auto_map["AutoConfig"] = "modeling_pony.PonyConfig"
    config = {"model_type": "pony", "architectures": [wanted], "dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    rows = torch.randn(128, 128).bfloat16()
    tensors = {"embed_tokens.weight": rows[:64].clone(), "up_proj.weight": rows}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    tq3.compress(source, tmp_path / "out")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    model = tq3.load(tmp_path / "out", trust_remote_code=True)
    assert type(model).__name__ == wanted
    assert isinstance(model.up_proj, PackedLinear)
